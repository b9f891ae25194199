"""What several tests share: a network small enough to train in a test, folders of pictures, ways to run the scripts."""
import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

import makedata
import models
import test
import train
from common import settings
from common.data.transforms import Transform
from common.evaluation.predictor import FORMAT
from common.evaluation.validate import measure_batch_norm
from common.training import choices, run_length, setup

ROOT = Path(__file__).resolve().parent.parent
SEEDLINGS = Path(os.environ.get('SEEDLINGS', ROOT.parent / 'shared' / 'seedlings'))
TINY = {'layers': (1, 1, 1, 1), 'embed_dims': (24, 48), 'num_heads': (2, 4), 'stem_hidden_dim': 16}
CLOCKS = {'seconds', 'images_per_s', 'waiting'}  # columns of the log that no two runs have alike
SMALL = {'--img-size': 32, '--batch-size': 8, '--epochs': 2, '--validate-every': 1, '--warmup': 0,
         '--num-workers': 0, '--pretrained': 'false', '--use-amp': 'true', '--model-kwargs': TINY, '--drop-path': 0,
         '--lr': 1e-3, '--augmentation': 1, '--output-dir': 'out'}


def tiny_volo(**kwargs):
    return models.create_model('volo_d1', **{'num_classes': 5, 'img_size': 64, **TINY, **kwargs})


def untrained(path, classes=('a', 'b', 'c'), seed=2, size=32, settings=None, **content):
    """Save a checkpoint of a small network with random weights, which names noise with any of the classes."""
    torch.manual_seed(seed)
    net = tiny_volo(num_classes=len(classes), img_size=size)
    torch.nn.init.normal_(net.head.weight)
    torch.save({'format': FORMAT, 'model': 'volo_d1', 'model_kwargs': TINY, 'classes': list(classes),
                'transform': Transform([size, size], [0.5] * 3, [0.3] * 3).as_dict(), 'state_dict': net.state_dict(),
                'settings': settings or {}, **content}, path)
    return path


def assert_annotated(script):
    """Every constant of a script says which types it may have."""
    assert vars(settings.read(script, [])).keys() <= script.__annotations__.keys()


def draw_folder(root, counts, size=(20, 24), suffix='.png', seed=0):
    """root/<class>/<number><suffix>, every class a different grey level under noise, every picture different."""
    rng = np.random.default_rng(seed)
    for level, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 60, (*size, 3)) + 180 * level // max(1, len(counts) - 1)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f'{number:03}{suffix}')
    return root


def run_script(script, *arguments, cwd=None, env=None):
    """Run a script as a user would, in a folder of its own; returns the finished process with its output as text."""
    env = {**os.environ, 'HF_HUB_OFFLINE': '1', 'PYTHONUTF8': '1', **(env or {})}
    return subprocess.run([sys.executable, ROOT / script, *map(str, arguments)], cwd=cwd, env=env, text=True,
                          encoding='utf-8', capture_output=True)


def launch(processes, script, *arguments, options=(), machine=None):
    """Start a script in several processes of one thread each, as torchrun does; returns the process of torchrun.

    `machine` is a command that runs another one somewhere else.
    """
    env = {**os.environ, 'HF_HUB_OFFLINE': '1', 'PYTHONUTF8': '1', 'PYTHONFAULTHANDLER': '1', 'OMP_NUM_THREADS': '1',
           'CUDA_VISIBLE_DEVICES': ''}
    return subprocess.Popen(
        [*(machine or []), sys.executable, '-m', 'torch.distributed.run', *([] if machine else ['--standalone']),
         f'--nproc-per-node={processes}', *options, ROOT / script, *map(str, arguments)], env=env, text=True,
        encoding='utf-8', stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def arguments_of(**changes):
    """The command line of a small run, changed: arguments_of(epochs=3) has --epochs 3."""
    given = {**SMALL, **{'--' + name.replace('_', '-'): value for name, value in changes.items()}}
    return [text for pair in given.items() for text in map(str, pair)]


def configure(**changes):
    """The settings of a small run, changed: configure(epochs=3) is --epochs 3."""
    return settings.read(train, arguments_of(**changes))


def prepare(**changes):
    """The settings of a small run as train.main has them, after they were checked."""
    return choices.check_settings(configure(**changes))


def run(**changes):
    train.main(configure(**changes))


def load(cfg, of_weights=None):
    split = train.open_split(cfg.DATA_DIR)
    transform = train.make_transform(cfg.IMG_SIZE, cfg.CROP, cfg.MODEL, cfg.NORMALISATION, of_weights, split.classes)
    return train.build_data(cfg, split, transform, transform, train.train_transform(cfg, transform))


def build(**changes):
    """(settings, data, state): what train.py has before the first update."""
    cfg = prepare(**changes)
    weights = setup.find_weights(cfg.PRETRAINED, cfg.MODEL, cfg.IMG_SIZE)
    split = train.open_split(cfg.DATA_DIR)
    cfg = choices.choose_settings(cfg, weights.provenance, len(split.train), len(split.classes), None)
    data = load(cfg, weights.provenance.normalisation)
    state, _ = train.build_state(cfg, data, weights, None, run_length.Clock())
    return cfg, data, state


def measure_norms(state, loader):
    measure_batch_norm([*state.weights().values()], loader, state.device, state.amp_dtype)


def update_without_waiting(state):
    """An update of a network of two classes, of 32 pixels, on a GPU; an error where it is waited for."""
    state.net.train()
    images = torch.randn(4, 3, 32, 32, device=state.device)
    targets = torch.full((4, 2), 0.5, device=state.device)
    state.model(images, targets)  # chooses kernels
    torch.cuda.set_sync_debug_mode('error')
    try:
        _, losses = state.model(images, targets)
        losses.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(state.net.parameters(), 1.)
        state.optimizer.found_inf = 1. - norm.isfinite().float()
        state.scaler.step(state.optimizer)
        state.ema.update(state.net, step=1)
    finally:
        torch.cuda.set_sync_debug_mode('default')


def classify(*arguments):
    """Run test.py in this process, in the current folder; returns its exit code and what it printed."""
    out = io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out):
        try:
            test.main(settings.read(test, ['--num-workers', '0', *map(str, arguments)]))
        except SystemExit as error:
            code = error.code
    return SimpleNamespace(returncode=code, stdout=out.getvalue())


def read_json(path):
    return json.loads(Path(path).read_text(encoding='utf-8'))


def read_rows(folder):
    """The rows of predictions.jsonl."""
    with open(Path(folder, 'predictions.jsonl'), encoding='utf-8') as file:
        return [json.loads(line) for line in file]


def result():
    return read_json('out/result.json')


def saved(picture, **options):
    file = io.BytesIO()
    picture.save(file, **options)
    return Image.open(file)


def resized(picture, factor):
    return picture.resize([round(factor * side) for side in picture.size], Image.Resampling.BICUBIC)


def cropped(picture, *shares):
    width, height = picture.size
    left, top, right, below = (round(share * side) for share, side in zip(shares, (width, height) * 2, strict=True))
    return picture.crop((left, top, width - right, height - below))


COPIES = {
    'quality 60': lambda picture: saved(picture, format='JPEG', quality=60),
    'quality 95': lambda picture: saved(picture, format='JPEG', quality=95),
    'smaller': lambda picture: resized(picture, 0.7),
    'larger': lambda picture: resized(picture, 1.3),
    'without the left and upper 5 %': lambda picture: cropped(picture, .05, .05, 0, 0),
    'without the outer 2.5 %': lambda picture: cropped(picture, .025, .025, .025, .025),
    'without the outer 5 %': lambda picture: cropped(picture, .05, .05, .05, .05),
    'turned': lambda picture: picture.transpose(Image.Transpose.ROTATE_90),
    'mirrored': lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    'all at once': lambda picture: saved(resized(cropped(picture, 0, .04, .02, 0), 0.8).transpose(
        Image.Transpose.TRANSVERSE), format='JPEG', quality=80)}


def scene(seed, size=(240, 200)):
    """A smooth picture with some edges, as photographs are."""
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(rng.integers(0, 256, (7, 8, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    for _ in range(12):
        x, y = rng.integers(0, 200), rng.integers(0, 160)
        picture.paste(tuple(rng.integers(0, 256, 3).tolist()), (x, y, x + rng.integers(5, 60), y + rng.integers(5, 60)))
    return picture


def rows_of(folder):
    """The rows of a split's split.csv."""
    with open(folder / 'split.csv', newline='', encoding='utf-8', errors='surrogateescape') as file:
        return list(csv.DictReader(file))


def entries(folder):
    return rows_of(folder / 'data')


def sides(folder):
    """{SHA-256: side} of the split in folder/data."""
    return {entry['sha256']: entry['side'] for entry in entries(folder)}


def split(*arguments):
    """Run makedata.py in this process, in the current folder."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            makedata.main(settings.read(makedata, list(map(str, arguments))))
        except settings.UserError as error:
            return SimpleNamespace(returncode=2, stdout=out.getvalue(), stderr=str(error))
    return SimpleNamespace(returncode=0, stdout=out.getvalue(), stderr='')


def files_below(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}
