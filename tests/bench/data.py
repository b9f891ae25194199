"""Whether the network waits for pictures: each stage of reading them, and whole epochs beside bare training steps.

    python tests/bench/data.py                       on data/, as train.py would
    python tests/bench/data.py --img-size 112 --cache ram

A bare step is forward, backward, clipping and AdamW on one batch that is there. An epoch is train.py's own, with
reading, augmentation, EMA and the log's numbers. Bare steps and epochs take turns.
"""
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

import train
from common import settings
from common.data.cache import ImageCache
from common.runtime.machine import retain_freed_memory
from common.training.clock import Clock
from common.training.state import Progress

DATA_DIR = 'data'                 # what makedata.py made
MODEL = 'volo_d1'
IMG_SIZE = 224                    # pixels
BATCH_SIZE = 32                   # pictures a step
CACHE: str | None = 'auto'         # as in train.py
NUM_WORKERS: int | str = 'auto'   # as in train.py
EPOCHS = 3                        # to time; each has as many bare steps before it as take 20 s
PICTURES = 200                    # for the stages, one thread


def main(cfg):
    argv = ['--pretrained', 'false', '--epochs', '100']
    for name in ('DATA_DIR', 'MODEL', 'IMG_SIZE', 'BATCH_SIZE', 'CACHE', 'NUM_WORKERS'):
        argv += ['--' + name.lower().replace('_', '-'), str(getattr(cfg, name))]
    training = settings.read(train, argv)
    train.check(training)
    retain_freed_memory()
    weights = {'source': 'scratch'}
    data = train.build_data(training, weights)
    print_stages(data.train.dataset, cfg.PICTURES)
    run = train.build_training(training, data, weights, None, None)
    shares = []
    for epoch in range(cfg.EPOCHS):
        images = torch.randn(cfg.BATCH_SIZE, 3, *training.IMG_SIZE)
        bare = cfg.BATCH_SIZE / bare_step(training, run, images, len(data.classes))
        clock = Clock(len(data.train), cfg.EPOCHS, rest=0)
        row = train.train_one_epoch(training, run, data, epoch, clock)
        run.progress = Progress()
        train.evaluate(run.model, data, run, 'validating', lambda: None)
        shares.append(row['images_per_s'] / bare)
        print(f'epoch {epoch + 1}: {row["images_per_s"]:.1f} pictures/s, bare steps {bare:.1f}: {shares[-1]:.0%}; '
              f'waited {row["waiting"]:.1%} of the time', flush=True)
    print(f'median {statistics.median(shares):.0%}')


def print_stages(dataset, count):
    """Milliseconds for a picture in one thread, for reading it and for each of its transforms."""
    seconds, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)
    time.sleep(2)  # the workers have begun to read ahead
    read = ImageCache(dataset.loader.fit, dataset.loader.size, dataset.loader.least)  # without a cache
    for path, _ in dataset.samples[:count]:
        value = timed(seconds, 'read', read, path)
        for step in dataset.transform.transforms:
            value = timed(seconds, type(step).__name__, step, value)
    torch.set_num_threads(threads)
    number = min(count, len(dataset.samples))
    print('ms for each picture: ' + ', '.join(f'{name} {1e3 * total / number:.2f}' for name, total in seconds.items())
          + f'; together {1e3 * sum(seconds.values()) / number:.2f}')


def timed(seconds, name, function, value):
    start = time.perf_counter()
    value = function(value)
    seconds[name] = seconds.get(name, 0) + time.perf_counter() - start
    return value


def bare_step(cfg, run, images, classes, wanted=20):
    """Mean seconds of a step, over `wanted` seconds of them."""
    targets = torch.full((len(images), classes), 1 / classes, device=run.device)
    images, seconds = images.to(run.device), []
    train.set_mode(run.net, frozen=False)
    while sum(seconds) < wanted or len(seconds) < 5:
        start = time.perf_counter()
        _, losses = run.model(images, targets)
        run.scaler.scale(losses.mean()).backward()
        run.scaler.unscale_(run.optimizer)
        torch.nn.utils.clip_grad_norm_(run.net.parameters(), cfg.CLIP_GRAD)
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.optimizer.zero_grad()
        if run.device.type == 'cuda':
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.mean(seconds[2:])  # the first ones choose kernels


if __name__ == '__main__':
    settings.run(main)
