"""What a machine with a GPU has to show, in at most eight minutes, with the images of data1/.

    python tests/bench/gpu.py
    python tests/bench/gpu.py --device cpu --parts 'updates memory' --img-size 32 --batch-size 48 --models volo_d1

Each part is a process of its own with a limit on its time. All that they print goes to RESULTS line by line, so a part
that fails or hangs, or a machine that is lost, costs little. The parts come in the order of their worth; what is left
of the time falls to the later ones. DEVICE = 'cpu' rehearses those that a CPU can run.
"""
import contextlib
import csv
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from data import bare_step, build_training

import mean_std
import train
from common import settings
from common.data.folders import list_images
from common.runtime.errors import UserError
from common.training import step
from common.training.setup import Demand

RESULTS = 'gpu_results.txt'       # File that gets what the parts print. It must not exist.
DEVICE = 'cuda'                   # 'cuda' or 'cpu'.
PARTS: str | None = None          # Some of _LIMITS, with spaces in between; None: all.
SECONDS = 480.                    # For all of them.
IMG_SIZE = 224                    # Pixels.
BATCH_SIZE = 128                  # Images in an update, where speed and memory are measured.
MODELS = 'volo_d1 volo_d3'        # Networks whose memory is measured. The first is profiled.
PART: str | None = None           # Part that this process is; None starts them.

_ROOT = Path(__file__).resolve().parents[2]
_LIMITS = {  # part: seconds on a GPU
    'cuda_tests': 100,      # tests/test_cuda.py, extras/gpu_augment/test_on_gpu.py
    'updates': 80,          # the loss of ten updates in each way to train, beside the CPU's
    'speed': 30,            # ours beside timm's
    'epochs': 45,           # whole epochs beside bare steps
    'worker_epochs': 45,    # the same with augmentation in the worker processes
    'memory': 30,           # beside what train.py foretells
    'profile': 25,          # the kernels of an update
    'predict': 20,          # test.py
    'graphs': 150,          # ours beside timm's, compiled with CUDA graphs
    'compiled_epochs': 90,
    'speed_d3': 40,
    'compiled_tests': 200}  # extras/compile/test_on_gpu.py
_NEEDED = ('einops', 'matplotlib', 'plotly', 'pytest', 'sklearn', 'timm', 'torchtoolbox', 'torchvision', 'tqdm')
_COPIES = 40       # times that each image is in data/train
_FEW = 20          # images of each class in few/, an epoch of ten updates
_UPDATES = {       # way to train: options of train.py, and the way whose loss on the CPU it must have
    'adamw': ('', 'adamw'),
    'muon': ('--optimizer muon', 'muon'),
    'token_label': ('--token-label true --mixup-prob 0', 'token_label'),
    'fp32': ('--use-amp false', 'adamw'),
    'worker_augment': ('--gpu-augment false', 'adamw'),
    'torchrun': ('', 'adamw'),
    'data_parallel': ('', 'adamw'),
    'fp16': ('', 'adamw')}
_ON_GPU = ('data_parallel', 'fp16')  # ways that a CPU does not rehearse


def main(cfg):
    if cfg.PART:
        {'updates': compare_updates, 'profile': profile, 'memory': measure_memory}[cfg.PART](cfg)
        return
    if cfg.DEVICE == 'cuda' and not torch.cuda.is_available():
        raise UserError('DEVICE: there is no GPU, --device cpu rehearses what needs none')
    for name in _NEEDED:
        importlib.import_module(name)
    with open(cfg.RESULTS, 'x', encoding='utf-8') as results, tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        lay_out_images()
        end = time.monotonic() + cfg.SECONDS
        for part in cfg.PARTS.split() if cfg.PARTS else _LIMITS:
            start = time.monotonic()
            limit = end - start
            if cfg.DEVICE == 'cuda':
                limit = min(limit, _LIMITS[part])
            results.write(f'==== {part}\n')
            results.flush()
            line = f'==== {part}: {run_part(command(part, cfg), results, limit)}, {time.monotonic() - start:.0f} s'
            print(line, flush=True)
            results.write(line + '\n')


def lay_out_images():
    """Make data/, whose training set has every image _COPIES times, and few/, both with train/ and val/."""
    for folder in sorted(path for path in (_ROOT / 'data1').iterdir() if path.is_dir()):
        paths = [*map(Path, list_images(folder))]
        for target, found, copies in (('data/train', paths, _COPIES), ('data/val', paths, 1),
                                      ('few/train', paths[:_FEW], 1), ('few/val', paths[_FEW:], 1)):
            Path(target, folder.name).mkdir(parents=True)
            for path in found:
                for number in range(copies):
                    shutil.copy(path, Path(target, folder.name, f'{number}_{path.name}'))
    mean_std.main(settings.read(mean_std, ['--data-dir', 'few/train']))


def command(part, cfg):
    """The command line of a part."""
    bench = Path(__file__).parent
    tests = ['-m', 'pytest', '-v', '--maxfail=3', '-p', 'no:cacheprovider', '--rootdir', _ROOT]
    speed = [bench / 'model.py', '--img-size', cfg.IMG_SIZE, '--batch-sizes', f'{cfg.BATCH_SIZE},', '--repeats', 3,
             '--precisions', "('auto',)"]
    epochs = [bench / 'data.py', '--img-size', cfg.IMG_SIZE, '--batch-size', cfg.BATCH_SIZE, '--cache', 'ram',
              '--epochs', 2, '--seconds', 5]
    own = [__file__, '--part', part, '--device', cfg.DEVICE, '--img-size', cfg.IMG_SIZE, '--batch-size', cfg.BATCH_SIZE,
           '--models', cfg.MODELS]
    found = {
        'cuda_tests': [*tests, _ROOT / 'extras' / 'gpu_augment' / 'test_on_gpu.py', _ROOT / 'tests' / 'test_cuda.py'],
        'compiled_tests': [*tests, _ROOT / 'extras' / 'compile' / 'test_on_gpu.py'],
        'speed': [*speed, '--compiled', '()'],
        'graphs': [*speed, '--compiled', "('graphs',)"],
        'speed_d3': [*speed, '--model', 'volo_d3', '--compiled', '()'],
        'epochs': epochs,
        'worker_epochs': [*epochs, '--gpu-augment', 'false'],
        'compiled_epochs': [*epochs, '--compile', 'true'],
        'predict': [_ROOT / 'test.py', '--checkpoint', 'adamw/best.pth', '--test-dir', 'data/val']}.get(part, own)
    return [sys.executable, *map(str, found)]


def run_part(command, results, limit):
    """Run it for at most `limit` seconds; returns how it ended."""
    if limit < 5:
        return 'no time left'
    environment = {**os.environ, 'PYTHONUNBUFFERED': '1', 'HF_HUB_OFFLINE': '1'}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=results, stderr=subprocess.STDOUT,
                               env=environment, start_new_session=True)
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its own processes, too
        process.wait()
        return 'out of time'
    if code:
        return f'failed with {code}'
    return 'done'


# ---- parts of our own ------------------------------------------------------------------------------------------------

def compare_updates(cfg):
    """Print the mean loss of ten updates in each way to train, beside that of the CPU in single precision."""
    on_cpu = {}
    failed = []
    for way, (options, reference) in _UPDATES.items():
        if cfg.DEVICE == 'cpu' and way in _ON_GPU:
            continue
        try:
            if reference not in on_cpu:
                on_cpu[reference] = ten_updates(
                    f'cpu_{reference}', f'{_UPDATES[reference][0]} --use-amp false --use-gpu false')
            loss = ten_updates(way, f'{options} --use-gpu {cfg.DEVICE == "cuda"}')
        except Exception:  # the other ways go on
            traceback.print_exc()
            failed.append(way)
            continue
        print(f'RESULT {way}: loss {loss:.4f}, on the CPU {on_cpu[reference]:.4f}, '
              f'{loss / on_cpu[reference] - 1:+.2%}', flush=True)
    if failed:
        sys.exit(f'these failed: {", ".join(failed)}')


def ten_updates(way, options):
    """Train in the folder `way` with these options of train.py; returns the mean loss."""
    options = ('--data-dir few --epochs 1 --batch-size 24 --img-size 32 --optimizer adamw --lr 1e-4 --augmentation 1 '
               f'--drop-path 0 --pretrained false --use-amp true --gpu-augment true --output-dir {way} {options}')
    if way == 'torchrun':
        subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=1',
                        _ROOT / 'train.py', *options.split()], check=True)
    else:
        with instead(way):
            train.main(settings.read(train, options.split()))
    for path in Path(way).glob('*.pth'):  # of all ways they are 8 GB
        if path != Path('adamw', 'best.pth'):  # for `predict`
            path.unlink()
    with open(Path(way, 'log.csv'), newline='', encoding='utf-8') as file:
        return float(next(csv.DictReader(file))['train_loss'])


@contextlib.contextmanager
def instead(way):
    """float16 in place of bfloat16, or DataParallel as if there were a second GPU."""
    data_parallel = torch.nn.DataParallel
    with contextlib.ExitStack() as patches:
        if way == 'fp16':
            patches.enter_context(mock.patch.object(train.devices, 'choose_amp_dtype', lambda device: torch.float16))
        if way == 'data_parallel':
            patches.enter_context(mock.patch.object(torch.cuda, 'device_count', lambda: 2))
            patches.enter_context(mock.patch.object(
                torch.nn, 'DataParallel', lambda module: data_parallel(module, device_ids=[0])))
        yield


def build(cfg, model, data_dir):
    """(settings, data, state) of train.py before its first update."""
    return build_training(['--data-dir', data_dir, '--model', model, '--img-size', str(cfg.IMG_SIZE), '--batch-size',
                           str(cfg.BATCH_SIZE), '--pretrained', 'false', '--use-gpu', str(cfg.DEVICE == 'cuda')])


def profile(cfg):
    """Print what the updates of an epoch spend their time in, after one that chooses kernels."""
    training, data, state = build(cfg, cfg.MODELS.split()[0], 'few')

    def train_epoch(epoch):
        state.progress = step.Progress()
        train.train_one_epoch(training, state, data, epoch, lambda update, batches: state.progress.add(
            update, 0., batches.seconds, batches.waited))

    train_epoch(0)
    with torch.profiler.profile() as profiler:
        train_epoch(1)
    print(profiler.key_averages().table(sort_by=f'self_{cfg.DEVICE}_time_total', row_limit=40))


def measure_memory(cfg):
    """Print the most memory that training takes, beside what train.py foretells."""
    for model in cfg.MODELS.split():
        training, data, state = build(cfg, model, 'few')
        foretold = Demand(training.BATCH_SIZE, state.device, state.amp_dtype, training.USE_DP,
                          training.USE_EMA).memory(state.net, training.IMG_SIZE)
        images = torch.randn(training.BATCH_SIZE, 3, *training.IMG_SIZE)
        bare_step(training, state, images, len(data.classes), wanted=0.)
        found = 'not measured'
        if cfg.DEVICE == 'cuda':
            found = f'{torch.cuda.max_memory_allocated() / 2 ** 30:.2f} GiB'
            torch.cuda.reset_peak_memory_stats()
        print(f'RESULT {model}: foretold {foretold / 2 ** 30:.2f} GiB, {found}', flush=True)
        del training, data, state, images


if __name__ == '__main__':
    settings.run(main)
