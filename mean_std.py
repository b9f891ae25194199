"""Step 1: mean and standard deviation of the pictures' colour channels, for the normalisation in train.py.

    python mean_std.py

reads every picture below data1/ and writes mean_std.json, which train.py picks up by itself.
"""
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from tqdm.contrib.concurrent import process_map

from common import settings
from common.data.folders import find_pictures
from common.data.images import BadImage, open_image
from common.runtime.console import Bar, format_duration
from common.runtime.errors import UserError
from common.runtime.files import writable_folder, write_json
from common.runtime.machine import worker_count

DATA_DIR = 'data1'                # a folder with one sub-folder of pictures for each class
OUTPUT_FILE = 'mean_std.json'     # where the result goes; train.py looks for this name
NUM_WORKERS: int | str = 'auto'   # processes that read pictures; 'auto' takes one for each core

_LEVELS = np.arange(256) / 255


def main(cfg: settings.Settings) -> None:
    writable_folder(Path(cfg.OUTPUT_FILE).parent, 'OUTPUT_FILE')
    if Path(cfg.OUTPUT_FILE).is_dir():
        raise UserError(f'OUTPUT_FILE = {cfg.OUTPUT_FILE!r} is a folder: name a file')
    start = time.perf_counter()
    found = find_pictures(cfg.DATA_DIR)
    stats, bad = read_stats([path for _, path in found], worker_count(cfg.NUM_WORKERS))
    for problem in bad:
        print(f'left out: {problem}')
    if not len(stats):
        raise UserError(f'{cfg.DATA_DIR}: none of its {len(found)} files is a readable picture')
    mean, std = (values.tolist() for values in tutorial_pair(stats))
    if min(std) == 0:
        raise UserError(f'{cfg.DATA_DIR}: a colour channel has the same value all over each picture, so there is no '
                        'spread to divide by')
    pixel_mean, pixel_std = (values.tolist() for values in pixel_pair(stats))
    seconds = time.perf_counter() - start
    classes = sorted({name for name, _ in found})
    write_json(cfg.OUTPUT_FILE, {
        'data_dir': cfg.DATA_DIR, 'classes': classes, 'images': len(stats), 'mean': mean, 'std': std,
        'pixel_mean': pixel_mean, 'pixel_std': pixel_std, 'left_out': bad,
        'computed_at': time.strftime('%Y-%m-%d %H:%M:%S'), 'seconds': round(seconds, 1)})
    print(f'\n{len(stats)} pictures, {len(classes)} classes, {format_duration(seconds)}')
    print(f'mean of the per-picture means and stds: {(mean, std)}')
    print(f'over all pixels together:               {(pixel_mean, pixel_std)}')
    print(f'\n{cfg.OUTPUT_FILE} is written; train.py uses it. To fix the values there instead, paste')
    for name, values in (('MEAN', mean), ('STD', std)):
        print(f'{name}: tuple | None = {tuple(round(value, 6) for value in values)}')


def get_mean_and_std(paths: Sequence[str | Path], num_workers: int = 0) -> tuple[list[float], list[float]]:
    """([mean of each channel], [std of each channel]) of image files, of their channels in [0, 1].

    As in the tutorial: the averages, over the pictures, of each picture's own mean and (unbiased) std.
    """
    return tuple(values.tolist() for values in tutorial_pair(read_stats(paths, num_workers)[0]))


def read_stats(paths: Sequence[str | Path], num_workers: int) -> tuple[np.ndarray, list[str]]:
    """(float64 array (N, 4, 3), of channel_stats for each of N pictures, [errors of the unreadable files]).

    Raises UserError where a worker process died.
    """
    if num_workers:
        chunk = max(1, min(32, len(paths) // num_workers // 4))
        try:
            results = process_map(channel_stats, paths, max_workers=num_workers, chunksize=chunk, tqdm_class=Bar,
                                  desc='reading', unit='img')
        except BrokenProcessPool:
            raise UserError('a process that reads pictures died: if memory ran out, lower NUM_WORKERS') from None
    else:
        results = [channel_stats(path) for path in Bar(paths, desc='reading', unit='img')]
    stats = [result for result in results if not isinstance(result, str)]
    bad = [result for result in results if isinstance(result, str)]
    return np.stack(stats) if stats else np.empty((0, 4, 3)), bad


def channel_stats(path: str | Path) -> np.ndarray | str:
    """float64 (4, 3): mean, std, mean of squares and number of pixels for each channel of a picture in [0, 1].

    Of a file that cannot be read, its error. All of it follows from how often each of the 256 levels occurs.
    """
    try:
        counts = np.reshape(open_image(path).histogram(), (3, 256))
    except BadImage as error:
        return str(error)
    size = counts[0].sum()
    mean = counts @ _LEVELS / size
    deviations = (counts * (_LEVELS - mean[:, None]) ** 2).sum(1)
    return np.stack([mean, np.sqrt(deviations / max(1, size - 1)), counts @ _LEVELS ** 2 / size, np.full(3, size)])


def tutorial_pair(stats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std, (3,) each: the averages of the pictures' own in `stats`, (N, 4, 3)."""
    return stats[:, 0].mean(0), stats[:, 1].mean(0)


def pixel_pair(stats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std, (3,) each, over the pixels of all pictures together, each pixel counting the same."""
    mean, _, square, size = stats.transpose(1, 0, 2)
    mean, square = ((values * size).sum(0) / size.sum(0) for values in (mean, square))
    return mean, np.sqrt(np.maximum(square - mean ** 2, 0))


if __name__ == '__main__':
    settings.run(main)
