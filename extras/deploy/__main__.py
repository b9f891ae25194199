"""The network of a checkpoint as files for other programs: safetensors, and ONNX measured on the validation set.

    python -m extras.deploy --checkpoint checkpoints/volo_d1/best.pth

writes beside the checkpoint
    best.safetensors     the weights
    best.onnx            takes `images` (batch, 3, height, width), RGB in [0, 1] normalised by mean and std
    best_pictures.onnx   takes `pictures` (batch, height, width, 3), uint8 RGB of any size, which it resizes and
                         normalises itself (of the checkpoint's img_size, cropped, if training had a CROP)
    best_int8.onnx       is the same with weights and activations of 8 bits (QDQ, static quantization)
    classifier.html      classifies images in a browser, without a network connection: one of these files in a page
The ONNX files return `logits` (batch, classes), `certainty` (batch,), that of test.py, and of a VOLO `attention`
(batch, height/16, width/16), what the class token takes from each place. The metadata of all files hold, as JSON,
`classes` in the order of the logits, `preprocessing`, which common/data/transforms.py explains, `bit_depth`, the
BIT_DEPTH of common/data/images.py, and `temperature`, by which to divide the logits before a softmax.
ONNX files also have `agreement`: the fraction of images of val that they classify as PyTorch does, opened as
extras/deploy/predict_onnx.py opens them. A file that classifies under 99 % of them alike is not kept, except for INT8,
which is warned of.

The ONNX files need three packages: python -m pip install onnx onnxscript onnxruntime
"""
import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from common import settings
from common.data.folders import side_folder
from common.data.transforms import Transform
from common.evaluation.predictor import load_network
from common.runtime.errors import UserError, warn_instead
from common.runtime.files import install, locked, scratch_folder, writable_folder, writing
from common.settings import Settings
from extras.deploy.export import (
    OnnxFile,
    add_metadata,
    check_packages,
    classifier_of,
    metadata_of,
    write_onnx_files,
    write_safetensors,
)
from extras.deploy.measure import Measurement, SampledImages, measure, sample_images
from extras.deploy.page import WEIGHTS, PageContent, write_page
from extras.deploy.runtime import Runtime, read_runtime
from models import WeightsError, restore_model

CHECKPOINT: str = 'checkpoints/volo_d1/best.pth'
DATA_DIR: str = 'data'            # folder with train/ and val/, which the ONNX files are measured on
VAL_IMAGES: int = 500             # number of images of val that each file classifies, evenly spread
CALIBRATION_IMAGES: int = 64      # number of images of train that set the ranges of the 8-bit activations
BATCH_SIZE: int = 8               # images at a time when speed is measured
PAGE: str | None = 'int8'         # Weights in classifier.html: 'int8', 'fp16' (also written as best_fp16.onnx), 'fp32',
                                  # or None: no page.
UNKNOWN_BELOW: float = 0.0        # The least certainty, from 0 to 1, at which the page gives an image a class; below it
                                  # the answer is 'unknown'. It can be changed in the page.
RUNTIME: str | None = None        # What runs the network in the page: the npm package onnxruntime-web, a file that you
                                  # downloaded. None fetches it, once, into .cache/.
_LEAST_AGREEMENT = 0.99
_LEAST_FREE = 2 ** 20              # bytes of a disk that is not full


def main(cfg: Settings) -> None:
    for name in ('VAL_IMAGES', 'CALIBRATION_IMAGES', 'BATCH_SIZE'):
        settings.check_range(name, getattr(cfg, name), least=1)
    settings.check_range('UNKNOWN_BELOW', cfg.UNKNOWN_BELOW, least=0, most=1)
    if cfg.PAGE not in (*WEIGHTS, None):
        raise UserError(f'PAGE = {cfg.PAGE!r}: choose {", ".join(map(repr, WEIGHTS))} or None')
    path = Path(cfg.CHECKPOINT)
    check_unicode(path)
    saved = load_network(path)
    writable_folder(path.parent, 'CHECKPOINT')
    try:
        net = restore_model(saved).eval()
        metadata = metadata_of(saved)
        write_safetensors(net, metadata, path.with_suffix('.safetensors'))
        print(path.with_suffix('.safetensors'))

        check_packages()
        runtime = find_runtime(cfg)
        transform = Transform.from_dict(saved['transform'])
        val = sample_images(side_folder(cfg.DATA_DIR, 'val'), cfg.VAL_IMAGES, transform)
        refuse_other_classes(val, saved['classes'], cfg.DATA_DIR, path)
        train = sample_images(side_folder(cfg.DATA_DIR, 'train'), cfg.CALIBRATION_IMAGES, transform)
        with unfinished_files(path) as folder:
            with writing(path.with_suffix('.onnx')), noticing_a_full_disk(folder):
                files = write_onnx_files(classifier_of(saved, net), transform, metadata, train.pictures(), folder,
                                         path.stem, with_fp16=cfg.PAGE == 'fp16')
            reference, *measured = measure(net, files, val, saved['classes'], cfg.BATCH_SIZE)
            print_table([reference, *measured], cfg.BATCH_SIZE)
            refused = keep_files(files, measured, path.parent)
            if runtime is not None:
                write_browser_page(cfg, saved, runtime, files, measured)
    except WeightsError as error:
        raise UserError(f'{path}: {error}') from error
    if refused:
        raise UserError(f'{", ".join(refused)}: not kept, because of too many images of val that are classified unlike '
                        'PyTorch')


def check_unicode(path: Path) -> None:
    """Raise UserError for a path that is not UTF-8, from which onnxruntime does not read."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(f'{path}: onnxruntime reads no path that is not UTF-8: copy the file elsewhere') from error


def refuse_other_classes(val: SampledImages, classes: list[str], data_dir: str, checkpoint: Path) -> None:
    """Raise UserError for images of classes that a checkpoint does not have: they are of another data set."""
    others = set(val.truth.values()) - set(classes)
    if others:
        raise UserError(f'DATA_DIR = {data_dir!r} has classes that {checkpoint} does not have, '
                        f'{", ".join(sorted(others))}: set it to what the checkpoint was trained on')


def find_runtime(cfg: Settings) -> Runtime | None:
    """Return the runtime of the page; None where no page is wanted, or after a warning where it cannot be fetched.

    Raises UserError where the user gives a file that is not the package.
    """
    if cfg.PAGE is None:
        return None
    webgpu = cfg.PAGE != 'int8'
    if cfg.RUNTIME is not None:
        return read_runtime(cfg.RUNTIME, webgpu)
    with warn_instead():
        return read_runtime(None, webgpu)
    return None


def write_browser_page(cfg: Settings, saved: dict[str, Any], runtime: Runtime, files: list[OnnxFile],
                       measured: list[Measurement]) -> None:
    """Write classifier.html with the file that PAGE chooses, if that was kept. Raises UserError."""
    folder = Path(cfg.CHECKPOINT).parent
    for file, found in zip(files, measured, strict=True):
        network = folder / file.path.name
        is_chosen = file.takes_pictures and file.weights == cfg.PAGE
        if is_chosen and is_kept(file, found):
            page = folder / 'classifier.html'
            write_page(page, PageContent(network, file.weights, saved, found, cfg.UNKNOWN_BELOW, runtime))
            print(f'{page} ({page.stat().st_size / 2 ** 20:.1f} MiB): open it in a browser')


@contextmanager
def unfinished_files(checkpoint: Path) -> Iterator[Path]:
    """Yield a folder beside a checkpoint for files that are not measured yet, which no other process uses.

    Raises UserError.
    """
    lock = checkpoint.with_name(f'.{checkpoint.stem}.deploy.lock')
    with locked(lock, f'CHECKPOINT = {str(checkpoint)!r}: another deploy writes beside it'):
        try:
            with scratch_folder(checkpoint.with_name(f'.{checkpoint.stem}.deploy')) as folder:
                yield folder
        finally:
            with suppress(OSError):  # Windows deletes no open file
                lock.unlink(missing_ok=True)


@contextmanager
def noticing_a_full_disk(folder: Path) -> Iterator[None]:
    """Turn any error into an OSError where the disk is full: some libraries cut a file off there, and stumble over it
    later.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if shutil.disk_usage(folder).free > _LEAST_FREE:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def print_table(measured: list[Measurement], batch_size: int) -> None:
    """Print a line for each measurement."""
    images = measured[0].images
    print(f'{"":24} {"size":>9} {"as PyTorch":>10} {"ACC1":>8} {"images/s":>10}   ({images} images of val; '
          f'batches of {batch_size}, {torch.get_num_threads()} threads)')
    for found in measured:
        size = '' if found.size is None else f'{found.size / 2 ** 20:.1f} MiB'
        print(f'{found.name:24} {size:>9} {found.agreement:>10.2%} {found.accuracy:>8.2%} {found.images_per_s:>10.1f}')


def is_kept(file: OnnxFile, found: Measurement) -> bool:
    """Return whether a file agrees with PyTorch often enough; INT8 always does."""
    return file.is_int8 or found.agreement >= _LEAST_AGREEMENT


def keep_files(files: list[OnnxFile], measured: list[Measurement], folder: Path) -> list[str]:
    """Move the files that agree with PyTorch to a folder, with their agreement in their metadata.

    INT8 is always kept. Warns of each file that disagrees too often; returns the names of those that are not kept.
    """
    refused = []
    for file, found in zip(files, measured, strict=True):
        target = folder / file.path.name
        if found.agreement < _LEAST_AGREEMENT:
            advice = ': compare its ACC1 before you use it' if file.is_int8 else ''
            print(f'WARNING: {found.name} classifies {1 - found.agreement:.1%} of the images unlike PyTorch{advice}')
        if not is_kept(file, found):
            refused.append(found.name)
            with writing(target):
                target.unlink(missing_ok=True)  # an earlier checkpoint's
            continue
        agreement = {'top1': round(found.agreement, 4), 'pictures': found.images}
        with writing(target):
            add_metadata(file.path, 'agreement', json.dumps(agreement))
        install(file.path, target)
    return refused


if __name__ == '__main__':
    settings.run(main)
