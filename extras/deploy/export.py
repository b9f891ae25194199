"""Turn a checkpoint of train.py into files for other programs.

    python -m extras.deploy.export checkpoints/volo_d1/best.pth

writes best.onnx and best.safetensors beside it. The metadata of both hold the class names and the preprocessing as JSON
texts: `classes` in the order of the logits, and `preprocessing`, which common/data/transforms.py explains. The ONNX
model takes `images` (batch, 3, height, width) of any batch size, RGB in [0, 1] normalised by mean and std, and returns
`logits` (batch, classes). It is kept only if onnxruntime computes the same logits as PyTorch. It needs three packages:
python -m pip install onnx onnxscript onnxruntime

For files that take pictures as they are, and INT8, measured on pictures: python -m extras.deploy
"""
import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from models import WeightsError, read_file, restore_model
from models.weights import first_line

OPSET = 18          # the oldest that PyTorch writes
TOLERANCE = 1e-3    # largest difference of a logit between onnxruntime and PyTorch, both in fp32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', type=Path, help='best.pth of train.py')
    path = parser.parse_args().checkpoint
    try:
        net, img_size, metadata = open_checkpoint(path)
        write_safetensors(net, metadata, path.with_suffix('.safetensors'))
        print(path.with_suffix('.safetensors'))
        difference = write_onnx(net, img_size, metadata, path.with_suffix('.onnx'))
        print(f'{path.with_suffix(".onnx")}: opset {OPSET}, logits within {difference:.1e} of those of PyTorch')
    except (WeightsError, OSError) as error:
        print(f'export: {" ".join(str(error).split())}', file=sys.stderr)
        sys.exit(2)


def open_checkpoint(path: Path) -> tuple[nn.Module, tuple[int, int], dict[str, str]]:
    """(network in evaluation mode, (height, width) in pixels, metadata of the files to write). Raises WeightsError."""
    saved = read_file(path)
    try:
        net = restore_model(saved).eval()
    except WeightsError as error:
        raise WeightsError(f'{path}: {error}') from error
    return net, tuple(saved['transform']['img_size']), {
        'model': saved['model'], 'classes': json.dumps(saved['classes'], ensure_ascii=False),
        'preprocessing': json.dumps(saved['transform'])}


def write_safetensors(net: nn.Module, metadata: dict[str, str], path: Path) -> None:
    """Write the network's state dict and the metadata. A failure leaves `path` as it was."""
    part = path.with_name(f'{path.name}.part')
    state = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    try:
        part.write_bytes(safetensors.torch.save(state, metadata))  # save_file's are for their owner only
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


class Preprocessing(nn.Module):
    """uint8 RGB pictures of one size (batch, height, width, 3) -> normalised images (batch, 3, *img_size).

    Without a crop pictures of any size are resized as Pillow does, within one or two grey levels; with one they must
    come as resized and cropped already. `transform` is that of a checkpoint.
    """

    def __init__(self, transform: dict[str, Any]):
        super().__init__()
        self.size, self.mode = tuple(transform['img_size']), transform['interpolation']
        self.resizes = transform['crop'] is None
        mean, std = (torch.tensor(transform[name]).view(3, 1, 1) for name in ('mean', 'std'))
        self.register_buffer('scale', 1 / (255 * std))
        self.register_buffer('shift', mean / std)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        x = pictures.permute(0, 3, 1, 2).float()
        if self.resizes:
            x = F.interpolate(x, self.size, mode=self.mode, antialias=True).round().clamp(0, 255)
        return x * self.scale - self.shift


def write_onnx(net: nn.Module, img_size: tuple[int, int], metadata: dict[str, str], path: Path) -> float:
    """Export the network, run it in onnxruntime, and return the largest difference from a logit of PyTorch.

    Raises WeightsError if a package is missing, the network cannot be exported, or the logits differ by more than
    TOLERANCE; `path` is not changed then.
    """
    part = path.with_name(f'{path.name}.part')
    try:
        convert(net, torch.zeros(2, 3, *img_size), 'images', {}, metadata, part)
        try:
            session = open_session(part)
            difference = max(compare(net, session, torch.randn(batch, 3, *img_size)) for batch in (1, 3))
        except Exception as error:  # onnxruntime raises a dozen types of its own
            raise WeightsError(f'onnxruntime does not run {metadata["model"]}: {first_line(error)}') from error
        if not difference <= TOLERANCE:
            raise WeightsError(f'{path}: its logits differ by {difference:.1e} from those of PyTorch: not kept')
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return difference


def convert(module: nn.Module, example: torch.Tensor, name: str, dynamic: dict[int, str], metadata: dict[str, str],
            path: Path) -> None:
    """Write a module as an ONNX file whose input is called `name`; its batch and the dimensions in `dynamic`, by the
    names that they get, may have any size. Raises WeightsError.
    """
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        if importlib.util.find_spec(package) is None:
            raise WeightsError(f'{package} is missing, so there is no ONNX file: '
                               'python -m pip install onnx onnxscript onnxruntime')
    dimensions = {number: torch.export.Dim(text) for number, text in ({0: 'batch'} | dynamic).items()}
    try:
        program = torch.onnx.export(module, (example,), dynamic_shapes=(dimensions,), dynamo=True, input_names=[name],
                                    output_names=['logits'], opset_version=OPSET, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        raise WeightsError(f'PyTorch cannot export {metadata["model"]}: {first_line(error)}') from error
    program.model.metadata_props.update(metadata)
    program.save(path)


def open_session(path: Path) -> Any:
    """An onnxruntime session on the CPU, with as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])


@torch.inference_mode()
def compare(net: nn.Module, session: Any, images: torch.Tensor) -> float:
    """The largest difference between the logits of a network and of an onnxruntime session."""
    return (torch.from_numpy(session.run(None, {'images': images.numpy()})[0]) - net(images)).abs().max().item()


if __name__ == '__main__':
    main()
