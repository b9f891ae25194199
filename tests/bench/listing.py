"""How long a folder of very many pictures takes to list, to check, to cache and to split, and how much memory.

    python tests/bench/listing.py --count 1000000        writes so many tiny pictures to FOLDER first, once

    python tests/bench/listing.py --folder photos --steps shards,read_files,read_shards     your own, in photos/train

Each step is a process of its own; those that leave a cache are run twice. The last two read all pictures in random
order with WORKERS worker processes, from files and from shards, and add up the memory that each of them has for itself.
"""
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from PIL import Image

from common import settings
from common.runtime.console import Bar

COUNT = 1_000_000     # pictures
CLASSES = 1000
WORKERS = 8
FOLDER = 'many'       # gets train/ and val/
STEPS = ''            # names of steps, with commas; '' takes all

_MEASURE = '''
import resource, sys, time
sys.path.insert(0, {root!r})
start = time.perf_counter()
{code}
seconds, memory = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(f'seconds {{seconds:.1f}}, GiB {{memory / 2 ** 20:.2f}}')
'''
_LOAD = '''
from common.data.cache import ImageCache
from common.data.datasets import ImageFolder
paths = [path for path, _ in ImageFolder('{folder}/train').samples]
ImageCache(lambda image: image, (8, 8), 16).load(paths, {where!r})
'''
_READ = '''
import numpy as np
from common.data.datasets import SeededImageFolder
from common.data.loaders import EpochSampler, start_loader
dataset = SeededImageFolder('{folder}/train', lambda image: np.array(image.resize((64, 64))))
loader = start_loader(dataset, {workers}, batch_sampler=EpochSampler(len(dataset), 50, 1, dataset.blocks()))
own = 0
for batch, _ in enumerate(loader):
    if batch == 2:
        begin = time.perf_counter()
    if batch == len(loader) - 20:
        own = sum(int(line.split()[1]) for worker in loader._iterator._workers
                  for line in open(f'/proc/{{worker.pid}}/smaps_rollup') if line.startswith('Private'))
print(f'pictures/s {{(batch - 2) * 50 / (time.perf_counter() - begin):.0f}}')
print(f'GiB of all workers together, not shared: {{own / 2 ** 20:.2f}}')
'''
_SPLIT = '''
import makedata
from common import settings
makedata.main(settings.read(makedata, [
    '--source-dir', '{folder}/train', '--target-dir', '{folder}-{kind}', '{option}', 'true', '--val-ratio', '0.01']))
'''
_CODE = {
    'list': "from common.data.folders import find_in_class_folders\nfind_in_class_folders('{folder}/train')",
    'check': _LOAD.replace('{where!r}', 'None'), 'cache': _LOAD.replace('{where!r}', "'disk'"),
    'split': _SPLIT.replace('{kind}', 'split').replace('{option}', '--link'),
    'shards': _SPLIT.replace('{kind}', 'shards').replace('{option}', '--shards'),
    'read_files': _READ, 'read_shards': _READ.replace('{folder}', '{folder}-shards')}
_AGAIN = ('check', 'cache')


def main(cfg):
    write_pictures(Path(cfg.FOLDER), cfg.COUNT, cfg.CLASSES)
    for name in cfg.STEPS.split(',') if cfg.STEPS else _CODE:
        code = _CODE[name].format(folder=cfg.FOLDER, workers=cfg.WORKERS)
        script = _MEASURE.format(root=str(Path(__file__).resolve().parents[2]), code=code)
        for time in range(1 + (name in _AGAIN)):
            done = subprocess.run([sys.executable, '-c', script], stdout=subprocess.PIPE, text=True, check=True)
            found = [line for line in done.stdout.splitlines() if line.startswith(('seconds', 'GiB', 'pictures/s'))]
            print(f'{name}{", again" * time}: {"; ".join(found)}', flush=True)


def write_pictures(folder, count, classes):
    """Every one another, of 8 x 8 pixels, a BMP of 246 bytes."""
    if folder.exists():
        return
    for name in range(classes):
        (folder / 'train' / f'class {name:04}').mkdir(parents=True)
    for number in Bar(range(count), desc='writing', unit='img'):
        pixels = (number * 2654435761 % 2 ** 64).to_bytes(8, 'little') * 24
        Image.frombytes('RGB', (8, 8), pixels).save(
            folder / 'train' / f'class {number % classes:04}' / f'{number:07}.bmp')


if __name__ == '__main__':
    settings.run(main)
