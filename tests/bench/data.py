"""Whether the network waits for pictures: each stage of reading them, and whole epochs beside bare training steps.

    python tests/bench/data.py                       on data/, as train.py would
    python tests/bench/data.py --img-size 112 --cache ram

A bare step is forward, backward, clipping and the optimizer's step on one batch that is there. An epoch is train.py's
own, with reading, augmentation, EMA and the log's numbers. Bare steps and epochs take turns.
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
from common.training import choices, run_length, setup, step

DATA_DIR = 'data'                 # what makedata.py made
MODEL = 'volo_d1'
IMG_SIZE = 224                    # pixels
BATCH_SIZE = 32                   # pictures a step
CACHE: str | None = 'auto'         # as in train.py
NUM_WORKERS: int | str = 'auto'   # as in train.py
COMPILE = False                   # as in train.py
GPU_AUGMENT: bool | str = 'auto'  # as in train.py
EPOCHS = 3                        # to time
SECONDS = 20                      # of bare steps before each epoch
PICTURES = 200                    # for the stages, one thread


def main(cfg):
    argv = ['--pretrained', 'false', '--epochs', '100']
    for name in ('DATA_DIR', 'MODEL', 'IMG_SIZE', 'BATCH_SIZE', 'CACHE', 'NUM_WORKERS', 'COMPILE',
                 'GPU_AUGMENT'):
        argv += ['--' + name.lower().replace('_', '-'), str(getattr(cfg, name))]
    training, data, state = build_training(argv)
    print_stages(data.train.dataset, cfg.PICTURES)
    shares = []
    for epoch in range(cfg.EPOCHS):
        images = torch.randn(cfg.BATCH_SIZE, 3, *training.IMG_SIZE)
        bare = cfg.BATCH_SIZE / bare_step(training, state, images, len(data.classes), cfg.SECONDS)
        state.progress = step.Progress()
        train.train_one_epoch(training, state, data, epoch, lambda update, batches: state.progress.add(
            update, 0., batches.seconds, batches.waited))
        speed = state.progress.images / state.progress.seconds
        shares.append(speed / bare)
        print(f'epoch {epoch + 1}: {speed:.1f} images/s, bare steps {bare:.1f}: {shares[-1]:.0%}; '
              f'waited {state.progress.waited / state.progress.seconds:.1%} of the time', flush=True)
        state.progress = step.Progress()
        train.evaluate(training, state, data, lambda: None)
    print(f'median {statistics.median(shares):.0%}')


def build_training(argv):
    """(settings, data, state) of train.py before its first update, with these options, from scratch."""
    retain_freed_memory()
    cfg = choices.check_settings(settings.read(train, argv))
    weights = setup.find_weights(cfg.PRETRAINED, cfg.MODEL, cfg.IMG_SIZE)
    split = train.open_split(cfg.DATA_DIR)
    cfg = choices.choose_settings(cfg, weights.provenance, len(split.train), len(split.classes), None)
    transform = train.make_transform(cfg.IMG_SIZE, cfg.CROP, cfg.MODEL, cfg.NORMALISATION, None, split.classes)
    data = train.build_data(cfg, split, transform, transform, train.train_transform(cfg, transform))
    state, _ = train.build_state(cfg, data, weights, None, run_length.Clock())
    return cfg, data, state


def print_stages(dataset, count):
    """Milliseconds for a picture in one thread, for reading it and for each of its transforms."""
    seconds, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)
    time.sleep(2)  # the workers have begun to read ahead
    read = ImageCache(dataset.loader.fit, dataset.loader.size, dataset.loader.least)  # without a cache
    transforms = getattr(dataset.transform, 'transforms', [dataset.transform])  # with GPU_AUGMENT one alone
    for path, _ in dataset.samples[:count]:
        value = timed(seconds, 'read', read, path)
        for transform in transforms:
            value = timed(seconds, type(transform).__name__, transform, value)
    torch.set_num_threads(threads)
    number = min(count, len(dataset.samples))
    print('ms for each picture: ' + ', '.join(f'{name} {1e3 * total / number:.2f}' for name, total in seconds.items())
          + f'; together {1e3 * sum(seconds.values()) / number:.2f}')


def timed(seconds, name, function, value):
    start = time.perf_counter()
    value = function(value)
    seconds[name] = seconds.get(name, 0) + time.perf_counter() - start
    return value


def bare_step(cfg, state, images, classes, wanted):
    """Mean seconds of a step, over `wanted` seconds of them."""
    targets = torch.full((len(images), classes), 1 / classes, device=state.device)
    images, seconds, steps = images.to(state.device), [], 1 if state.device.type == 'cpu' else 10
    state.net.train()
    while steps * sum(seconds) < wanted or len(seconds) < 5:
        start = time.perf_counter()
        for _ in range(steps):
            _, losses = state.model(images, targets)
            state.scaler.scale(losses.mean()).backward()
            state.scaler.unscale_(state.optimizer)
            torch.nn.utils.clip_grad_norm_(state.net.parameters(), cfg.CLIP_GRAD)
            state.scaler.step(state.optimizer)
            state.scaler.update()
            state.optimizer.zero_grad()
        if state.device.type != 'cpu':
            torch.accelerator.synchronize()
        seconds.append((time.perf_counter() - start) / steps)
    return statistics.mean(seconds[2:])  # the first ones choose kernels


if __name__ == '__main__':
    settings.run(main)
