"""Write the files of `python -m extras.deploy`: safetensors, and the kinds of ONNX files."""
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from common.data import images
from common.data.transforms import Transform
from common.evaluation.outliers import RARE
from common.evaluation.predictor import outliers_of, temperature_of
from common.runtime.console import Bar, as_json
from common.runtime.files import replacing
from models import VOLO, WeightsError, logits_and_features
from models.errors import first_line

PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')
OPSET = 18          # the oldest that PyTorch writes
TOLERANCE = 1e-3    # largest difference of a logit between onnxruntime and PyTorch, both in fp32; where logits are over
                    # 1, as a share of the largest


@dataclass(frozen=True)
class OnnxFile:
    """A file that was written, and what it is."""
    path: Path
    takes_pictures: bool    # its input is `pictures`, uint8 and of any size, instead of normalised `images`
    weights: str = 'fp32'   # or 'fp16', 'int8'

    @property
    def is_int8(self) -> bool:
        return self.weights == 'int8'


def check_packages() -> None:
    """Raise WeightsError if a package is missing that ONNX files need."""
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise WeightsError(f'{package} is missing, so there is no ONNX file: '
                               f'python -m pip install {" ".join(PACKAGES)}')


def metadata_of(saved: dict[str, Any]) -> dict[str, str]:
    """Return the metadata of the files from a checkpoint: each value is a JSON text, except for the model's name.

    What is no character in a class's name, as Python has it in place of bytes that are no UTF-8, is an escape there.
    """
    return {'model': saved['model'],
            'classes': as_json(saved['classes']),
            'preprocessing': json.dumps(saved['transform']),
            'bit_depth': json.dumps(images.BIT_DEPTH),
            'temperature': json.dumps(temperature_of(saved))}


def write_safetensors(net: nn.Module, metadata: dict[str, str], path: Path) -> None:
    """Write the network's state dict and the metadata. A failure leaves `path` as it was."""
    state = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    with replacing(path) as aside:
        aside.write_bytes(safetensors.torch.save(state, metadata))  # only the owner could read a file of save_file


class Classifier(nn.Module):
    """The network with all that an answer needs: normalised images (B, 3, H, W) -> logits (B, classes), certainty (B,)
    and, of a VOLO, attention (B, H/16, W/16).

    The certainty is that of common/evaluation/outliers.py, from 0 to 1. `known` is what a checkpoint knows of the
    features of val; without it the certainty is the confidence. The attention is where the class token looks.
    """

    def __init__(self, net: nn.Module, known: dict[str, torch.Tensor] | None, temperature: float) -> None:
        super().__init__()
        self.net = net
        self.temperature = temperature
        self.has_attention = isinstance(net, VOLO) and not net.return_mean
        self.outputs = ['logits', 'certainty'] + ['attention'] * self.has_attention
        self.has_outliers = known is not None
        if known is not None:
            variances, directions = torch.linalg.eigh(known['precision'].double())
            # With precision = whiten @ whiten.T the distance is a sum of squares, which fp32 can add up.
            self.register_buffer('whiten', (directions * variances.clamp(min=0).sqrt()).float())
            self.register_buffer('mean', known['mean'])
            self.register_buffer('squares', known['squares'])

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.has_attention:
            tokens, box = self.net.forward_features(images)
            logits, features = self.net.forward_head(tokens, box), tokens.mean((1, 2))
            attention = (self.net.class_attention(tokens),)
        else:
            logits, features = logits_and_features(self.net, images)
            attention = ()
        certainty = (logits / self.temperature).softmax(1).amax(1)
        if self.has_outliers:
            squares = ((features - self.mean) @ self.whiten).square().sum(1, keepdim=True)  # (B, 1)
            further = (self.squares >= squares).float().sum(1)  # known images that lie as far out
            typical = (further + 1) / (len(self.squares) + 1)
            certainty = torch.minimum(certainty, typical / RARE)
        return logits, certainty, *attention


def classifier_of(saved: dict[str, Any], net: nn.Module) -> Classifier:
    """Return the Classifier of a checkpoint, whose network is `net`."""
    return Classifier(net, outliers_of(saved, getattr(net, 'num_features', 0)), temperature_of(saved)).eval()


def write_onnx_files(classifier: Classifier, transform: Transform, metadata: dict[str, str],
                     calibration: Iterator[np.ndarray], folder: Path, stem: str,
                     with_fp16: bool = False) -> list[OnnxFile]:
    """Write the three ONNX files, each beginning with `stem`, into a folder; `with_fp16` is for one more.

    `calibration` yields images as `pictures` takes them, (1, height, width, 3). Raises WeightsError if the network
    cannot be exported or onnxruntime computes other logits than PyTorch.
    """
    plain = OnnxFile(folder / f'{stem}.onnx', takes_pictures=False)
    pictures = OnnxFile(folder / f'{stem}_pictures.onnx', takes_pictures=True)
    int8 = OnnxFile(folder / f'{stem}_int8.onnx', takes_pictures=True, weights='int8')
    files = [plain, pictures, int8]
    if with_fp16:
        files.append(OnnxFile(folder / f'{stem}_fp16.onnx', takes_pictures=True, weights='fp16'))
    with Bar(total=len(files), unit='file') as bar:
        bar.set_description_str(f'writing {plain.path.name}')
        write_network(classifier, transform.img_size, metadata, plain.path)
        bar.update()
        put_preprocessing_before(plain.path, transform, metadata, pictures.path, folder)
        bar.update()
        bar.set_description_str(f'writing {int8.path.name}')
        quantize(pictures.path, int8.path, calibration, folder)
        bar.update()
        if with_fp16:
            write_fp16(pictures.path, files[-1].path)
            bar.update()
    return files


def write_network(classifier: Classifier, img_size: list[int], metadata: dict[str, str], path: Path) -> None:
    """Write the network without preprocessing: its input is `images` (batch, 3, *img_size). Raises WeightsError.

    Its logits are compared with PyTorch's; on one that onnxruntime computes otherwise, the file is deleted.
    """
    convert(classifier, torch.zeros(2, 3, *img_size), 'images', classifier.outputs, {}, metadata, path)
    try:
        session = open_session(path)
        noise = torch.randn(4, 3, *img_size, generator=torch.Generator().manual_seed(0))
        difference = max(compare(classifier, session, images) for images in (noise[:1], noise[1:]))
    except Exception as error:  # onnxruntime raises a dozen types of its own
        path.unlink()
        raise WeightsError(f'onnxruntime does not run {metadata["model"]}: {first_line(error)}') from error
    if not difference <= TOLERANCE:  # true of NaN, too
        path.unlink()
        raise WeightsError(f'{path.name}: its logits differ by {difference:.1e} from those of PyTorch: not kept')


@torch.inference_mode()
def compare(classifier: Classifier, session: Any, images: torch.Tensor) -> float:
    """Return the largest difference between the logits of a network and of an onnxruntime session; where they are over
    1, as a share of the largest.
    """
    found = torch.from_numpy(session.run(['logits'], {'images': images.numpy()})[0])
    expected = classifier(images)[0]
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


class Preprocessing(nn.Module):
    """uint8 RGB images of one size (batch, height, width, 3) -> normalised images (batch, 3, *img_size).

    Without a crop, images of any size are resized as Pillow does, within one or two grey levels. With a crop they must
    come resized and cropped.
    """

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.size = tuple(transform.img_size)
        self.mode = transform.interpolation
        self.resizes = transform.crop is None
        mean = torch.tensor(transform.mean).view(3, 1, 1)
        std = torch.tensor(transform.std).view(3, 1, 1)
        self.register_buffer('scale', 1 / (255 * std))
        self.register_buffer('shift', mean / std)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        x = pictures.permute(0, 3, 1, 2).float()
        if self.resizes:
            x = F.interpolate(x, self.size, mode=self.mode, antialias=True).round().clamp(0, 255)
        return x * self.scale - self.shift


def put_preprocessing_before(source: Path, transform: Transform, metadata: dict[str, str], target: Path,
                             folder: Path) -> None:
    """Write the network of an ONNX file behind Preprocessing: its input is `pictures` (batch, height, width, 3).

    `folder` is for intermediate files. Raises WeightsError.
    """
    import onnx

    preprocessing = Preprocessing(transform).eval()
    height, width = transform.img_size
    dynamic = {}
    if preprocessing.resizes:
        dynamic = {1: 'height', 2: 'width'}
        height += 16  # an example of img_size would need no resizing, and PyTorch could fix the size
        width += 16
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    first_part = folder / 'preprocessing.onnx'
    convert(preprocessing, example, 'pictures', ['normalised'], dynamic, metadata, first_part)
    first = onnx.compose.add_prefix(onnx.load(first_part), 'preprocessing/', rename_inputs=False)
    first_part.unlink()
    network = onnx.load(source)
    merged = onnx.compose.merge_models(first, network, io_map=[('preprocessing/normalised', 'images')],
                                       producer_name=network.producer_name,
                                       producer_version=network.producer_version)
    del merged.opset_import[1:]  # merge_models lists twice the one that both parts have
    onnx.helper.set_model_props(merged, metadata)
    onnx.save(merged, target)


def convert(module: nn.Module, example: torch.Tensor, name: str, outputs: list[str], dynamic: dict[int, str],
            metadata: dict[str, str], path: Path) -> None:
    """Write a module as an ONNX file with an input of this name and these outputs. Raises WeightsError.

    The batch may have any size, and so may the dimensions in `dynamic`, {dimension: its name}.
    """
    dimensions = {number: torch.export.Dim(text) for number, text in ({0: 'batch'} | dynamic).items()}
    try:
        program = torch.onnx.export(module, (example,), dynamic_shapes=(dimensions,), dynamo=True, input_names=[name],
                                    output_names=outputs, opset_version=OPSET, verbose=False, optimize=False)
    except torch.onnx.OnnxExporterError as error:
        raise WeightsError(f'PyTorch cannot export {metadata["model"]}: {first_line(error)}') from error
    simplify(program.model)
    program.model.metadata_props.update(metadata)
    program.save(path)


def simplify(model: Any) -> None:
    """Compute what is constant in a model of onnx_ir, and leave out what is not used.

    PyTorch's `optimize` also looks for patterns, which takes as long as the rest of the export, and which onnxruntime
    does by itself.
    """
    from onnx_ir.passes import common
    from onnxscript import optimizer

    common.InlinePass()(model)
    optimizer.fold_constants(model, onnx_shape_inference=True)
    passes = [
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.OutputFixPass(),
        common.NameFixPass()]
    for simplification in passes:
        simplification(model)


def quantize(source: Path, target: Path, pictures: Iterator[np.ndarray], folder: Path) -> None:
    """Write an ONNX file with its linear layers and convolutions in 8 bits, except those of sensitive_nodes().

    The ranges of the activations are those for `pictures`, (1, height, width, 3) each. `folder` is for intermediate
    files.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Calibration(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            picture = next(pictures, None)
            return None if picture is None else {'pictures': picture}

    prepared = folder / 'prepared.onnx'
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_static(prepared, target, Calibration(), per_channel=True, activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8, op_types_to_quantize=['Conv', 'Gemm', 'MatMul'],
                    nodes_to_exclude=sensitive_nodes(prepared),
                    extra_options={'MatMulConstBOnly': True})  # not the products within attention


def sensitive_nodes(path: Path) -> list[str]:
    """Return the names of the nodes of an ONNX file that need more than 8 bits.

    They are the stem, whose errors all layers inherit, and what measures how far out an image lies. The stem is all
    convolutions ahead of the first linear layer, or the first one of a network of convolutions.
    """
    import onnx

    model = onnx.load(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    stem = []
    for node in model.graph.node:
        if node.op_type == 'Conv':
            stem.append(node.name)
        elif node.op_type == 'MatMul' and not weights.isdisjoint(node.input):
            break
    else:
        stem = stem[:1]
    return stem + [node.name for node in model.graph.node if 'whiten' in node.input]


def write_fp16(source: Path, target: Path) -> None:
    """Write an ONNX file with the weights and the network's arithmetic in 16 bits of floating point."""
    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    model = onnx.load(source)
    certainty = set()  # and what comes before the network: sums of squares and grey levels need more bits
    for node in model.graph.node:
        if node.name.startswith('preprocessing/') or 'whiten' in node.input or 'squares' in node.input:
            certainty.add(node.name)
    smaller = convert_float_to_float16(model, keep_io_types=True, node_block_list=sorted(certainty),
                                       op_block_list=[*DEFAULT_OP_BLOCK_LIST, 'LayerNormalization', 'Softmax'])
    onnx.save(smaller, target)


def add_metadata(path: Path, key: str, value: str) -> None:
    """Add an entry to the metadata of an ONNX file."""
    import onnx

    model = onnx.load(path)
    entries = {item.key: item.value for item in model.metadata_props}
    entries[key] = value
    onnx.helper.set_model_props(model, entries)
    onnx.save(model, path)


def open_session(path: Path) -> Any:
    """Return an onnxruntime session on the CPU, with as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; its warnings are for its own developers
    return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
