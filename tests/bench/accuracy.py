"""How well a recipe learns from photographs, for the compute that it takes: trains, and adds a row to a table.

    python tests/bench/accuracy.py --photos PHOTOS --recipe ours --options "--img-size 64 --epochs 8" --seed 1

PHOTOS is split as makedata.py does without options. Half of the validation set, by the hash of each path, is for
choosing between recipes; the other half is left alone until a recipe is chosen (--half claim). The weights are those of
the last epoch, averaged where the recipe averages: not the best of many looks.
"""
import csv
import hashlib
import os
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

import makedata
import train
from common import settings
from common.data.folders import list_images
from common.evaluation.metrics import scores
from common.evaluation.predictor import predict
from common.runtime.errors import UserError
from common.runtime.machine import worker_count
from common.training import checkpoint

PHOTOS = 'data1'                  # a folder of photographs, one sub-folder for each class
RECIPE = 'ours'                   # one of RECIPES
OPTIONS = ''                      # more options of train.py
SEED = 1
HALF = 'choose'                   # of the validation set: 'choose' or 'claim'
MACHINE = ''                      # in words, for the table
TABLE = 'docs/accuracy.csv'       # gets a row
WORK_DIR = 'bench'                # split and checkpoints go there

RECIPES = {
    'ours': '--pretrained false',
    'resnet18': '--pretrained false --model resnet18 --drop-path 0'}


def main(cfg):
    if cfg.RECIPE not in RECIPES:
        raise UserError(f'RECIPE = {cfg.RECIPE!r}: choose {" or ".join(RECIPES)}')
    photos, table = Path(cfg.PHOTOS).resolve(), Path(cfg.TABLE).resolve()
    work = Path(cfg.WORK_DIR)
    work.mkdir(exist_ok=True)
    os.chdir(work)
    makedata.main(settings.read(makedata, ['--source-dir', str(photos), '--link', 'true']))
    options = f'{RECIPES[cfg.RECIPE]} {cfg.OPTIONS}'
    train.main(settings.read(train, [*shlex.split(options), '--seed', str(cfg.SEED), '--output-dir', 'out']))
    row = {'recipe': cfg.RECIPE, 'options': cfg.OPTIONS, 'seed': cfg.SEED, **evaluate(Path('out'), cfg.HALF),
           'machine': cfg.MACHINE}
    print(row)
    is_new = not table.exists()
    with open(table, 'a', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, row)
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def evaluate(out, half):
    """What a finished run in the folder `out` took, and what its last weights get right in that half of data/val."""
    saved = checkpoint.load(out / 'last.pth')
    if saved['state_dict_ema']:
        saved['state_dict'] = saved['state_dict_ema']
    paths = [path for path in list_images(Path('data/val')) if half_of(path) == half]
    predictions = predict(saved, 'last.pth', paths, 32, worker_count('auto'), 'auto', True)
    predictions = [prediction for prediction in predictions if not prediction.error]
    targets = [saved['classes'].index(prediction.path.parts[2]) for prediction in predictions]
    found = scores(torch.stack([p.logits for p in predictions]), torch.tensor(targets), saved['classes'])
    history = saved['history']
    return {'epochs': len(history), 'pflop': float(f'{sum(row["pflop"] for row in history):.3g}'),
            'minutes': round(sum(row['seconds'] for row in history) / 60, 1), 'half': half,
            'pictures': len(predictions), 'acc1': round(found['acc1'], 2),
            'balanced': round(found['balanced_accuracy'], 2),
            'macro_f1': round(100 * found['report']['macro avg']['f1-score'], 2)}


def half_of(path):
    digest = hashlib.sha256(path.relative_to('data/val').as_posix().encode()).digest()
    return 'claim' if digest[0] % 2 else 'choose'


if __name__ == '__main__':
    settings.run(main)
