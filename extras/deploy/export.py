"""Write the files of `python -m extras.deploy`: safetensors, and three kinds of ONNX files."""
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
from common.evaluation.predictor import temperature_of
from common.runtime.console import Bar, as_json
from common.runtime.files import replacing
from models import WeightsError
from models.errors import first_line

PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')
OPSET = 18          # the oldest that PyTorch writes
TOLERANCE = 1e-3    # largest difference of a logit between onnxruntime and PyTorch, both in fp32


@dataclass(frozen=True)
class OnnxFile:
    """A file that was written, and what it is."""
    path: Path
    takes_pictures: bool    # its input is `pictures`, uint8 and of any size, instead of normalised `images`
    is_int8: bool = False


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


def write_onnx_files(net: nn.Module, transform: Transform, metadata: dict[str, str], calibration: Iterator[np.ndarray],
                     folder: Path, stem: str) -> list[OnnxFile]:
    """Write the three ONNX files, each beginning with `stem`, into a folder.

    `calibration` yields images as `pictures` takes them, (1, height, width, 3). Raises WeightsError if the network
    cannot be exported or onnxruntime computes other logits than PyTorch.
    """
    plain = OnnxFile(folder / f'{stem}.onnx', takes_pictures=False)
    pictures = OnnxFile(folder / f'{stem}_pictures.onnx', takes_pictures=True)
    int8 = OnnxFile(folder / f'{stem}_int8.onnx', takes_pictures=True, is_int8=True)
    with Bar(total=3, desc='writing', unit='file') as bar:
        write_network(net, transform.img_size, metadata, plain.path)
        bar.update()
        write_with_preprocessing(net, transform, metadata, pictures.path)
        bar.update()
        quantize(pictures.path, int8.path, calibration, folder)
        bar.update()
    return [plain, pictures, int8]


def write_network(net: nn.Module, img_size: list[int], metadata: dict[str, str], path: Path) -> None:
    """Write the network alone: its input is `images` (batch, 3, *img_size). Raises WeightsError.

    Its logits are compared with PyTorch's; on one that onnxruntime computes otherwise, the file is deleted.
    """
    convert(net, torch.zeros(2, 3, *img_size), 'images', {}, metadata, path)
    try:
        session = open_session(path)
        difference = max(compare(net, session, torch.randn(batch, 3, *img_size)) for batch in (1, 3))
    except Exception as error:  # onnxruntime raises a dozen types of its own
        path.unlink()
        raise WeightsError(f'onnxruntime does not run {metadata["model"]}: {first_line(error)}') from error
    if not difference <= TOLERANCE:  # true of NaN, too
        path.unlink()
        raise WeightsError(f'{path.name}: its logits differ by {difference:.1e} from those of PyTorch: not kept')


@torch.inference_mode()
def compare(net: nn.Module, session: Any, images: torch.Tensor) -> float:
    """Return the largest difference between the logits of a network and of an onnxruntime session."""
    found = torch.from_numpy(session.run(None, {'images': images.numpy()})[0])
    return (found - net(images)).abs().max().item()


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


def write_with_preprocessing(net: nn.Module, transform: Transform, metadata: dict[str, str], path: Path) -> None:
    """Write the network behind Preprocessing: its input is `pictures` (batch, height, width, 3).

    Raises WeightsError.
    """
    preprocessing = Preprocessing(transform)
    height, width = transform.img_size
    dynamic = {}
    if preprocessing.resizes:
        dynamic = {1: 'height', 2: 'width'}
        height += 16  # an example of img_size would need no resizing, and PyTorch could fix the size
        width += 16
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    convert(nn.Sequential(preprocessing, net).eval(), example, 'pictures', dynamic, metadata, path)


def convert(module: nn.Module, example: torch.Tensor, name: str, dynamic: dict[int, str], metadata: dict[str, str],
            path: Path) -> None:
    """Write a module as an ONNX file whose input is called `name`. Raises WeightsError.

    The batch may have any size, and so may the dimensions in `dynamic`, {dimension: its name}.
    """
    dimensions = {number: torch.export.Dim(text) for number, text in ({0: 'batch'} | dynamic).items()}
    try:
        program = torch.onnx.export(module, (example,), dynamic_shapes=(dimensions,), dynamo=True, input_names=[name],
                                    output_names=['logits'], opset_version=OPSET, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        raise WeightsError(f'PyTorch cannot export {metadata["model"]}: {first_line(error)}') from error
    program.model.metadata_props.update(metadata)
    program.save(path)


def quantize(source: Path, target: Path, pictures: Iterator[np.ndarray], folder: Path) -> None:
    """Write an ONNX file with its linear layers and convolutions in 8 bits.

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
                    extra_options={'MatMulConstBOnly': True})  # not the products within attention


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
    return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
