"""Step 1: mean and standard deviation of the images' colour channels, for the normalisation in train.py.

    python mean_std.py

Reads every image below data1/ and writes mean_std.json, which train.py reads when it trains from scratch.
"""
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common import settings
from common.data.folders import find_in_class_folders, find_split
from common.data.images import BadImage, open_image
from common.data.listing import print_left_out
from common.runtime.console import Bar, format_duration
from common.runtime.errors import UserError
from common.runtime.files import writable_folder, write_json
from common.runtime.machine import lacking_for_processes, worker_count
from common.runtime.signals import end_with_parent

DATA_DIR: str = 'data1'           # Folder with one sub-folder of images for each class.
OUTPUT_FILE: str = 'mean_std.json'  # File for the result. train.py reads mean_std.json.
NUM_WORKERS: int | str = 'auto'   # Processes that read images. 'auto' takes one for each core, 8 at most.

_LEVELS = np.arange(256) / 255
_LEAST_STD = 1e-6    # train.py divides by no smaller one
_LEAST_SHARE = 1e-3  # of the largest channel's std


class ChannelStats(NamedTuple):
    """Statistics of N readable images, and the errors of the others."""
    images: np.ndarray  # float64 (N, 4, 3): mean, std, mean of squares and number of pixels, for each channel
    errors: list[str]


def main(cfg: settings.Settings) -> None:
    writable_folder(Path(cfg.OUTPUT_FILE).parent, 'OUTPUT_FILE')
    if Path(cfg.OUTPUT_FILE).is_dir():
        raise UserError(f'OUTPUT_FILE = {cfg.OUTPUT_FILE!r} is a folder: name a file')
    start = time.perf_counter()

    data_dir = cfg.DATA_DIR
    sides = find_split(data_dir)
    if sides:
        data_dir = str(Path(data_dir, sides['train']))
        print(f'{cfg.DATA_DIR} is split already: measured on {data_dir}, which train.py learns from')
    found = find_in_class_folders(data_dir)
    print_left_out(found.left_out)
    stats = read_stats([path for path, _ in found.samples], worker_count(cfg.NUM_WORKERS))
    for error in stats.errors:
        print(f'left out: {error}')
    if not len(stats.images):
        raise UserError(f'{data_dir}: none of its {len(found.samples)} files is a readable image ({stats.errors[0]})')

    report_flat_channels(stats.images[:, 1].mean(0), data_dir)
    mean, std = tutorial_pair(stats.images)
    pixel_mean, pixel_std = pixel_pair(stats.images)

    seconds = time.perf_counter() - start
    write_json(cfg.OUTPUT_FILE, {
        'data_dir': data_dir, 'classes': found.classes, 'images': len(stats.images), 'mean': mean, 'std': std,
        'pixel_mean': pixel_mean, 'pixel_std': pixel_std, 'left_out': stats.errors,
        'computed_at': time.strftime('%Y-%m-%d %H:%M:%S'), 'seconds': round(seconds, 1)})
    print(f'\n{len(stats.images)} images, {len(found.classes)} classes, {format_duration(seconds)}')
    print(f'mean of the per-image means and stds: {(mean, std)}')
    print(f'over all pixels together:             {(pixel_mean, pixel_std)}')
    print(f'\n{cfg.OUTPUT_FILE} is written. To set the values in train.py instead, paste')
    rounded = tuple(tuple(round(value, 6) for value in values) for values in (mean, std))
    print(f'NORMALISATION: str | tuple = {rounded}')


def get_mean_and_std(paths: Sequence[str | Path], num_workers: int = 0) -> tuple[list[float], list[float]]:
    """Return ([mean of each channel], [std of each channel]) of image files, of their channels in [0, 1].

    As in the tutorial, these are the averages over the images of each image's own mean and (unbiased) std.
    """
    return tutorial_pair(read_stats(paths, num_workers).images)


def read_stats(paths: Sequence[str | Path], num_workers: int) -> ChannelStats:
    """Return the channel_stats of all image files that can be read, and the errors of the others.

    Raises UserError where a worker process died.
    """
    lacking = lacking_for_processes(num_workers)
    if num_workers and lacking:
        print(f'warning: {lacking}: this process reads the images alone, as with NUM_WORKERS = 0')
        num_workers = 0
    if num_workers:
        chunk = max(1, min(32, len(paths) // num_workers // 4))
        try:
            with ProcessPoolExecutor(num_workers, initializer=end_with_parent) as pool:
                waiting = pool.map(channel_stats, paths, chunksize=chunk)
                results = list(Bar(waiting, total=len(paths), desc='reading', unit='img'))
        except BrokenProcessPool:
            raise UserError('a process that reads images died: if memory ran out, lower NUM_WORKERS') from None
    else:
        results = [channel_stats(path) for path in Bar(paths, desc='reading', unit='img')]
    errors = [result for result in results if isinstance(result, str)]
    stats = [result for result in results if not isinstance(result, str)]
    return ChannelStats(np.reshape(stats, (-1, 4, 3)), errors)


def channel_stats(path: str | Path) -> np.ndarray | str:
    """Return mean, std, mean of squares and number of pixels for each channel of an image in [0, 1], float64 (4, 3).

    Returns the error, a text, of a file that cannot be read. All values follow from the counts of the 256 levels.
    """
    try:
        counts = np.reshape(open_image(path).histogram(), (3, 256))
    except BadImage as error:
        return str(error)
    size = counts[0].sum()
    mean = counts @ _LEVELS / size
    deviations = (counts * (_LEVELS - mean[:, None]) ** 2).sum(1)
    std = np.sqrt(deviations / max(1, size - 1))
    mean_of_squares = counts @ _LEVELS ** 2 / size
    return np.stack([mean, std, mean_of_squares, np.full(3, size)])


def tutorial_pair(stats: np.ndarray) -> tuple[list[float], list[float]]:
    """Return mean and std of each channel: the averages of those of the images in `stats`, (N, 4, 3)."""
    mean = stats[:, 0].mean(0)
    std = stats[:, 1].mean(0)
    return mean.tolist(), usable(std).tolist()


def pixel_pair(stats: np.ndarray) -> tuple[list[float], list[float]]:
    """Return mean and std of each channel over the pixels of all images, each pixel counting the same."""
    means, _, squares, sizes = stats.transpose(1, 0, 2)
    mean = (means * sizes).sum(0) / sizes.sum(0)
    mean_of_squares = (squares * sizes).sum(0) / sizes.sum(0)
    std = np.sqrt(np.maximum(mean_of_squares - mean ** 2, 0))
    return mean.tolist(), usable(std).tolist()


def usable(std: np.ndarray) -> np.ndarray:
    """Return stds (3,) to divide by: 1 for a flat channel, of which normalisation then only subtracts the mean."""
    return np.where(are_flat(std), 1, std)


def are_flat(std: np.ndarray) -> np.ndarray:
    """Return for each of the stds (3,) whether it is too small to divide by, which would turn noise into outliers."""
    return std <= max(_LEAST_STD, _LEAST_SHARE * std.max())


def report_flat_channels(std: np.ndarray, folder: str) -> None:
    """Print which of the channels with the stds (3,) are flat. Raises UserError where all are."""
    flat = are_flat(std)
    if flat.all():
        raise UserError(f'{folder}: each colour channel has the same value all over each image, so there is no spread '
                        f'to divide by: without mean_std.json train.py normalises as for ImageNet')
    names = [name for name, is_flat in zip(('red', 'green', 'blue'), flat, strict=True) if is_flat]
    if names:
        print(f'{" and ".join(names)}: almost the same value all over each image, so the std is set to 1')


if __name__ == '__main__':
    settings.run(main)
