"""Turn a checkpoint of train.py into files for other programs.

    python -m models.export checkpoints/volo_d1/best.pth

writes best.onnx and best.safetensors beside it. Both carry the class names and the preprocessing in their metadata, as
JSON texts: `classes` in the order of the logits, and `preprocessing`, which common/data/transforms.py explains. The
ONNX file takes `images` (batch, 3, height, width), any batch size, RGB in [0, 1] normalised by mean and std, and gives
`logits`; it is compared with PyTorch in onnxruntime before it is kept. For it:
python -m pip install onnx onnxscript onnxruntime
"""
import argparse
import json
import os
import sys
from pathlib import Path

import safetensors.torch
import torch

from models import WeightsError, read_file, restore_model
from models.weights import first_line

OPSET = 18          # the first with Col2Im, which folds the windows of outlook attention
TOLERANCE = 1e-3    # largest difference of a logit between onnxruntime and PyTorch, both in fp32


def main():
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


def open_checkpoint(path):
    """(network in evaluation mode, (height, width), {name: text} that goes into the files). Raises WeightsError."""
    saved = read_file(path)
    try:
        net = restore_model(saved).eval()
    except WeightsError as error:
        raise WeightsError(f'{path}: {error}') from error
    return net, tuple(saved['transform']['img_size']), {
        'model': saved['model'], 'classes': json.dumps(saved['classes'], ensure_ascii=False),
        'preprocessing': json.dumps(saved['transform'])}


def write_safetensors(net, metadata, path):
    part = path.with_name(f'{path.name}.part')
    state = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    try:
        part.write_bytes(safetensors.torch.save(state, metadata))  # save_file would make it unreadable to others
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_onnx(net, img_size, metadata, path):
    """Write the network, compare it with onnxruntime's, and return the largest difference of a logit.

    Raises WeightsError where a package is missing, the network cannot be exported, or the logits differ by more than
    TOLERANCE; `path` is then as it was.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise WeightsError(f'{error.name} is missing, so there is no ONNX file: '
                           'python -m pip install onnx onnxscript onnxruntime') from error
    try:
        program = torch.onnx.export(
            net, (torch.zeros(2, 3, *img_size),), dynamic_shapes=({0: torch.export.Dim('batch')},), dynamo=True,
            input_names=['images'], output_names=['logits'], opset_version=OPSET, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        raise WeightsError(f'PyTorch cannot export {metadata["model"]}: {first_line(error)}') from error
    program.model.metadata_props.update(metadata)
    part = path.with_name(f'{path.name}.part')
    try:
        program.save(part)
        try:
            session = onnxruntime.InferenceSession(part, providers=['CPUExecutionProvider'])
            difference = max(compare(net, session, torch.randn(batch, 3, *img_size)) for batch in (1, 3))
        except Exception as error:  # onnxruntime has a dozen types of its own
            raise WeightsError(f'onnxruntime does not run {metadata["model"]}: {first_line(error)}') from error
        if not difference <= TOLERANCE:
            raise WeightsError(f'{path}: its logits differ by {difference:.1e} from those of PyTorch: not kept')
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return difference


@torch.inference_mode()
def compare(net, session, images):
    """The largest difference between the logits of a network and of an onnxruntime session."""
    return (torch.from_numpy(session.run(None, {'images': images.numpy()})[0]) - net(images)).abs().max().item()


if __name__ == '__main__':
    main()
