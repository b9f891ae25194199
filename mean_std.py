"""Step 1: mean and standard deviation of the pictures' colour channels, for the normalisation in train.py.

    python mean_std.py

reads every picture below data1/ and writes mean_std.json, which train.py picks up by itself.
"""
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from common import settings
from common.files import writable_folder, write_json
from common.images import BadImage, ImageFolder, loader_workers
from common.progress import Bar, format_duration

DATA_DIR = 'data1'                # a folder with one sub-folder of pictures for each class
OUTPUT_FILE = 'mean_std.json'     # where the result goes; train.py looks for this name
NUM_WORKERS: int | str = 'auto'   # processes that read pictures; 'auto' takes one for each core


def main(cfg):
    writable_folder(Path(cfg.OUTPUT_FILE).parent, 'OUTPUT_FILE')
    start = time.perf_counter()
    dataset = ImageFolder(cfg.DATA_DIR, transforms.ToTensor())
    stats, bad = channel_stats(dataset, loader_workers(cfg.NUM_WORKERS))
    for problem in bad:
        print(f'left out: {problem}')
    if not len(stats):
        raise settings.UserError(f'{cfg.DATA_DIR}: none of its {len(dataset)} files is a readable picture')
    mean, std = (values.tolist() for values in tutorial_pair(stats))
    pixel_mean, pixel_std = (values.tolist() for values in pixel_pair(stats))
    seconds = time.perf_counter() - start
    write_json(cfg.OUTPUT_FILE, {
        'data_dir': cfg.DATA_DIR, 'classes': dataset.classes, 'images': len(stats), 'mean': mean, 'std': std,
        'pixel_mean': pixel_mean, 'pixel_std': pixel_std, 'left_out': bad,
        'computed_at': time.strftime('%Y-%m-%d %H:%M:%S'), 'seconds': round(seconds, 1)})
    print(f'\n{len(stats)} pictures, {len(dataset.classes)} classes, {format_duration(seconds)}')
    print(f'mean of the per-picture means and stds: {(mean, std)}')
    print(f'over all pixels together:               {(pixel_mean, pixel_std)}')
    print(f'\n{cfg.OUTPUT_FILE} is written; train.py uses it. To fix the values there instead, paste')
    for name, values in (('MEAN', mean), ('STD', std)):
        print(f'{name}: tuple | None = {tuple(round(value, 6) for value in values)}')


def get_mean_and_std(dataset, num_workers=0):
    """([mean of each channel], [std of each channel]) of a dataset of ((C, H, W) tensor in [0, 1], label) pairs.

    As in the tutorial: the averages, over the pictures, of each picture's own mean and (unbiased) std.
    """
    stats, _ = channel_stats(dataset, num_workers)
    return tuple(values.tolist() for values in tutorial_pair(stats))


class ChannelStats(Dataset):
    """For every picture of a dataset a float64 array (4, C): mean, std, mean of squares, number of pixels.

    A picture that cannot be read gives its error, a text. The work is done here, in the loader's worker processes, so
    that only these few numbers travel; as an array, since a tensor would keep a file open for as long as it lives.
    """

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        try:
            image = self.dataset[index][0]
        except BadImage as error:
            return str(error)
        stats = []
        for pixels in image.flatten(1).numpy():  # a channel at a time: doubles of a large photograph are many
            pixels = pixels.astype(np.float64)
            std = pixels.std(ddof=min(1, len(pixels) - 1))
            stats.append([pixels.mean(), std, np.square(pixels).mean(), len(pixels)])
        return np.array(stats).T


def channel_stats(dataset, num_workers):
    """(float64 tensor (N, 4, C) as ChannelStats describes, [errors of the unreadable files])."""
    loader = DataLoader(ChannelStats(dataset), batch_size=16, num_workers=num_workers, collate_fn=list)
    results = []
    with Bar(total=len(dataset), desc='reading', unit='img') as bar:
        for batch in loader:
            results += batch
            bar.update(len(batch))
    stats = [result for result in results if not isinstance(result, str)]
    bad = [result for result in results if isinstance(result, str)]
    return torch.from_numpy(np.stack(stats)) if stats else torch.empty(0, 4, 3), bad


def tutorial_pair(stats):
    return stats[:, 0].mean(0), stats[:, 1].mean(0)


def pixel_pair(stats):
    """Mean and std over the pixels of all pictures together, each pixel counting the same."""
    mean, _, square, size = stats.unbind(1)
    mean, square = ((values * size).sum(0) / size.sum(0) for values in (mean, square))
    return mean, (square - mean.square()).clamp(min=0).sqrt()


if __name__ == '__main__':
    settings.run(main)
