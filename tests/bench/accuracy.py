"""How well a recipe learns from photographs with so much compute: trains, and adds a row to a table.

    python tests/bench/accuracy.py --photos PHOTOS --recipe ours --pflop 0.15 --seed 1

PHOTOS is split as makedata.py does with its constants, but without a search for near-duplicates, of which the Plant
Seedlings set has 39 pairs: so rows stay comparable to those of before there was one. Half of the validation set, by the
hash of each path, is for choosing between recipes; the other half is left alone until a recipe is chosen (--half
claim). The weights are those of the last epoch, not the best of many looks; where a recipe averages weights, both are
scored, and the picture shows the averaged ones of train.py, and the better of both of the others.
"""
import csv
import hashlib
import os
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from recipes import run_published_init, run_timm, run_train, run_tutorial, run_without

import makedata
import mean_std
from common import settings
from common.data.folders import list_images
from common.evaluation.metrics import scores
from common.evaluation.predictor import Predictor
from common.reporting.plots import drawn
from common.runtime.errors import UserError
from common.runtime.machine import worker_count

PHOTOS = 'data1'                  # a folder of photographs, one sub-folder for each class
RECIPE = 'ours'                   # one of RECIPES
PFLOP = 0.15                      # of training: 10^15 operations, a multiply-add being two
OPTIONS = ''                      # more options of the recipe's script
SEED = 1
HALF = 'choose'                   # of the validation set: 'choose' or 'claim'
MACHINE = ''                      # in words, for the table
TABLE = 'docs/accuracy.csv'       # gets a row; its claims are drawn beside it, as accuracy.png
WORK_DIR = 'bench'                # split and checkpoints go there

FROM_ABOVE = '--view above'  # plants from above have no up
RECIPES = {  # name: (how it trains, its options)
    'ours': (run_train, FROM_ABOVE),
    'resnet18': (run_train, f'--model resnet18 --lr 1e-3 --batch-size 32 {FROM_ABOVE}'),
    'tutorial': (run_tutorial, ''),
    'timm': (run_timm, '--opt nmuon --lr 3.4e-3 --batch-size 128 --drop-path 0.1 --mixup-prob 0 --vflip 0.5 '
                       '--scale 0.6 1 --color-jitter 0.3'),
    # ours with other initial weights
    'published init': (run_published_init, FROM_ABOVE),
    'no image filters': (run_without('filter_images'), FROM_ABOVE),
    'no channel means': (run_without('summarise_channels'), FROM_ABOVE),
    'no outlook shifts': (run_without('look_in_window'), FROM_ABOVE),
    'no attention to neighbours': (run_without('encode_positions', 'look_at_position'), FROM_ABOVE)}


def main(cfg):
    if cfg.RECIPE not in RECIPES:
        raise UserError(f'RECIPE = {cfg.RECIPE!r}: choose {", ".join(RECIPES)}')
    photos, table = Path(cfg.PHOTOS).resolve(), Path(cfg.TABLE).resolve()
    work = Path(cfg.WORK_DIR)
    work.mkdir(exist_ok=True)
    os.chdir(work)
    makedata.main(settings.read(makedata, [
        '--source-dir', str(photos), '--link', 'true', '--near-duplicates', 'false']))
    mean_std.main(settings.read(mean_std, ['--data-dir', 'data/train']))
    run, options = RECIPES[cfg.RECIPE]
    trained = run(f'{options} {cfg.OPTIONS}', cfg.PFLOP, cfg.SEED)
    row = {'recipe': cfg.RECIPE, 'options': cfg.OPTIONS, 'seed': cfg.SEED, 'budget': cfg.PFLOP,
           'pflop': float(f'{trained.pflop:.3g}'), 'epochs': round(trained.epochs, 2),
           'minutes': round(trained.seconds / 60, 1), 'machine': cfg.MACHINE, 'half': cfg.HALF}
    for name in ('raw', 'ema'):
        row |= evaluate(name, trained.weights.get(name), cfg.HALF)
    print(row)
    is_new = not table.exists()
    with open(table, 'a', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, row)
        if is_new:
            writer.writeheader()
        writer.writerow(row)
    draw(table)


def draw(table):
    """accuracy.png: the claims of each recipe over the compute, the median and the range of its seeds."""
    with open(table, newline='', encoding='utf-8') as file:
        claims = [row for row in csv.DictReader(file) if row['half'] == 'claim' and not row['options']]
    with drawn(table.with_suffix('.png'), 7, 4.2) as figure:
        axes = figure.add_subplot()
        for recipe in RECIPES:
            scored = {}  # {compute: [ACC1 of each seed]}
            for row in claims:
                if row['recipe'] == recipe:
                    scored.setdefault(float(row['budget']), []).append(score(row))
            points = [(budget, middle := statistics.median(found), middle - min(found), max(found) - middle)
                      for budget, found in sorted(scored.items())]
            if points:
                budgets, medians, *errors = zip(*points, strict=True)
                axes.errorbar(budgets, medians, errors, marker='o', capsize=3, label=recipe)
        axes.set(xscale='log', xlabel='training compute, PFLOP', ylabel='ACC1, %')
        budgets = sorted({float(row['budget']) for row in claims})
        axes.set_xticks(budgets, [f'{budget:g}' for budget in budgets])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
        if claims:
            axes.legend(frameon=False)


def score(row):
    """ACC1 of the averaged weights; of the others' recipes that of the raw ones, if it is higher."""
    found = [float(row[name]) for name in ('raw_acc1', 'ema_acc1') if row[name]]
    return found[-1] if RECIPES[row['recipe']][0] is run_train else max(found)


def evaluate(name, saved, half):
    """The columns of these weights, a checkpoint's content: what they get right in that half of data/val."""
    if saved is None:
        return {f'{name}_{column}': None for column in ('acc1', 'balanced', 'macro_f1')}
    paths = [path for path in map(Path, list_images('data/val')) if half_of(path) == half]
    predictor = Predictor({name: saved})
    predictions = [found for found in predictor(paths, workers=worker_count('auto')) if not found.error]
    targets = [saved['classes'].index(prediction.image.parts[2]) for prediction in predictions]
    found = scores(torch.stack([p.logits for p in predictions]), torch.tensor(targets), saved['classes'])
    return {f'{name}_acc1': round(found['acc1'], 2), f'{name}_balanced': round(found['balanced_accuracy'], 2),
            f'{name}_macro_f1': round(100 * found['report']['macro avg']['f1-score'], 2)}


def half_of(path):
    digest = hashlib.sha256(path.relative_to('data/val').as_posix().encode()).digest()
    return 'claim' if digest[0] % 2 else 'choose'


if __name__ == '__main__':
    settings.run(main)
