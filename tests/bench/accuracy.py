"""Measure how well a recipe learns from any set of photographs with so much compute: train, and add a row to a table.

    python tests/bench/accuracy.py --photos PHOTOS --view above --recipe ours --pflop 0.15 --seed 1
    python tests/bench/accuracy.py --photos PHOTOS --view above --recipe fine-tuned --epochs 20 \\
        --options '--model tf_efficientnet_lite0 --pretrained ../FILE'

PHOTOS is split as makedata.py does with its constants. Half of the validation set, by the hash of each path, is for
choosing between recipes; the other half is left alone until a recipe is chosen (--half claim). KEEP leaves only some of
the training images, to ask what 120 or 1,000 of them are enough for. The first rows of docs/accuracy.csv are of a split
without a search for near-duplicates, of which the Plant Seedlings have 39 pairs: --near-duplicates false repeats them.

The weights are those of the last epoch, not the best of many looks. Where a recipe averages weights, both are scored;
the picture shows the averaged ones of train.py, and the better of both of the others.
"""
import csv
import hashlib
import json
import math
import os
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from recipes import run_finetuned, run_published_init, run_timm, run_train, run_tutorial, run_without

import makedata
import mean_std
from common import settings
from common.data.folders import list_images
from common.evaluation.metrics import scores
from common.evaluation.predictor import Predictor
from common.reporting.plots import drawn
from common.runtime.errors import UserError
from common.runtime.machine import worker_count

PHOTOS = 'data1'                  # Folder of photographs, one sub-folder for each class. Its name is that of the set.
VIEW: str | None = 'upright'      # How the photographs may be turned, as in train.py: 'upright', 'above', 'text', None.
NEAR_DUPLICATES = True            # Keep near-duplicates on one side of the split.
KEEP: int | None = None           # Number of training images that are left after the split, each class its share but at
                                  # least 2. None leaves all. The validation set is never reduced.
RECIPE = 'ours'                   # One of RECIPES.
PFLOP = 0.15                      # Training compute: 10^15 operations, a multiply-add being two.
EPOCHS = 20                       # Passes over the training set of 'fine-tuned', in place of PFLOP.
OPTIONS = ''                      # More options of the recipe's script. Paths in them start at WORK_DIR.
SEED = 1                          # Seed of the training. The split has makedata.py's.
HALF = 'choose'                   # Half of the validation set: 'choose' or 'claim'.
MACHINE = ''                      # The machine in words, for the table.
TABLE = 'docs/accuracy.csv'       # Table that gets a row. Its claims are drawn beside it, as accuracy.png.
WORK_DIR = 'bench'                # Folder for the split and the checkpoints of one run, which goes on there.

RECIPES = {  # name: (how it trains, its options)
    'ours': (run_train, ''),
    'resnet18': (run_train, '--model resnet18 --lr 1e-3 --batch-size 32'),
    'fine-tuned': (run_finetuned, ''),  # OPTIONS names the network and the file of its weights
    'tutorial': (run_tutorial, ''),
    'timm': (run_timm, '--opt nmuon --lr 3.4e-3 --batch-size 128 --drop-path 0.1 --mixup-prob 0 --scale 0.6 1 '
                       '--color-jitter 0.3'),
    # ours with other initial weights
    'published init': (run_published_init, ''),
    'no image filters': (run_without('filter_images'), ''),
    'no channel means': (run_without('summarise_channels'), ''),
    'no outlook shifts': (run_without('look_in_window'), ''),
    'no attention to neighbours': (run_without('encode_positions', 'look_at_position'), '')}

# What makes one run another; the rest is how it is scored and where it is written.
_TRAINING = ('PHOTOS', 'VIEW', 'NEAR_DUPLICATES', 'KEEP', 'RECIPE', 'PFLOP', 'EPOCHS', 'OPTIONS', 'SEED')


def main(cfg):
    if cfg.RECIPE not in RECIPES:
        raise UserError(f'RECIPE = {cfg.RECIPE!r}: choose {", ".join(RECIPES)}')
    photos, table = Path(cfg.PHOTOS).resolve(), Path(cfg.TABLE).resolve()
    work = Path(cfg.WORK_DIR)
    work.mkdir(exist_ok=True)
    os.chdir(work)
    refuse_other_run({name: getattr(cfg, name) for name in _TRAINING})
    makedata.main(settings.read(makedata, [
        '--source-dir', str(photos), '--link', 'true', '--near-duplicates', str(cfg.NEAR_DUPLICATES)]))
    if cfg.KEEP is not None:
        keep(cfg.KEEP)
    mean_std.main(settings.read(mean_std, ['--data-dir', 'data/train']))
    run, options = RECIPES[cfg.RECIPE]
    length = cfg.EPOCHS if run is run_finetuned else cfg.PFLOP
    trained = run(f'{options} --view {cfg.VIEW} {cfg.OPTIONS}', length, cfg.SEED)
    row = {'set': photos.name, 'keep': cfg.KEEP, 'view': cfg.VIEW, 'near_duplicates': cfg.NEAR_DUPLICATES,
           'recipe': cfg.RECIPE, 'options': cfg.OPTIONS, 'seed': cfg.SEED,
           'budget': None if run is run_finetuned else cfg.PFLOP,
           'pflop': float(f'{trained.pflop:.3g}'), 'epochs': round(trained.epochs, 2),
           'minutes': round(trained.seconds / 60, 1), 'machine': cfg.MACHINE, 'half': cfg.HALF}
    for name in ('raw', 'ema'):
        row |= evaluate(name, trained.weights.get(name), cfg.HALF)
    print(row)
    is_new = not table.exists()
    with open(table, 'a', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, row, lineterminator='\n')
        if is_new:
            writer.writeheader()
        writer.writerow(row)
    draw(table)


def refuse_other_run(run):
    """Raise UserError in the folder of another run, whose checkpoint would be taken for this one's, or of one that has
    left no run.json.
    """
    path = Path('run.json')
    if Path('out').exists() and (not path.exists() or json.loads(path.read_text(encoding='utf-8')) != run):
        raise UserError(f'WORK_DIR: {Path.cwd()} belongs to another run, that of run.json: choose another WORK_DIR')
    path.write_text(json.dumps(run), encoding='utf-8')


def keep(count):
    """Leave `count` images in data/train, of each class its share, but at least 2: those with the lowest hashes.

    All images are ranked by where they are in the order of their class, from 0 to 1, so 120 are among 250.
    """
    ranked = []
    folders = [*Path('data/train').iterdir()]
    for folder in folders:
        paths = sorted(map(Path, list_images(folder)), key=path_hash)
        ranked += [(0 if place < 2 else (place + 0.5) / len(paths), path_hash(path), path)
                   for place, path in enumerate(paths)]
    settings.check_range('KEEP', count, 2 * len(folders), len(ranked))
    for *_, path in sorted(ranked)[count:]:
        path.unlink()


def draw(table):
    """Draw accuracy.png: for each set, the claims of each recipe over the compute, the median and range of its seeds.

    Rows with KEEP are left out, and rows with OPTIONS, except those of 'fine-tuned', which names its weights there.
    """
    with open(table, newline='', encoding='utf-8') as file:
        claims = [row for row in csv.DictReader(file) if row['half'] == 'claim' and not row['keep']
                  and (not row['options'] or row['recipe'] == 'fine-tuned')]
    if not claims:
        return
    recipes = [recipe for recipe in RECIPES if recipe in {row['recipe'] for row in claims}]
    splits = list(dict.fromkeys((row['set'], row['near_duplicates']) for row in claims))
    budgets = sorted({float(row['budget']) for row in claims if row['budget']})
    columns = min(2, len(splits))
    lines = math.ceil(len(splits) / columns)
    with drawn(table.with_suffix('.png'), 7 if columns == 1 else 9, 1 + 3.2 * lines) as figure:
        axes = None
        for number, (name, near_duplicates) in enumerate(splits, 1):
            axes = figure.add_subplot(lines, columns, number, sharex=axes, sharey=axes)
            for recipe in recipes:
                found = [row for row in claims if (row['recipe'], row['set'], row['near_duplicates'])
                         == (recipe, name, near_duplicates)]
                computes, medians, *errors = np.reshape(summarise(found), (-1, 4)).T
                axes.errorbar(computes, medians, errors, marker='o', capsize=3, label=recipe)
            unlike = ', near-duplicates not looked for' if near_duplicates == 'False' else ''
            axes.set(xscale='log', title=name + unlike)
            axes.set_xticks(budgets, [f'{budget:g}' for budget in budgets])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
            axes.spines[['top', 'right']].set_visible(False)
        figure.supxlabel('training compute, PFLOP', fontsize='medium')
        figure.supylabel('ACC1, %', fontsize='medium')
        figure.legend(*axes.get_legend_handles_labels(), loc='outside upper center', ncols=5, frameon=False)


def summarise(rows):
    """Return (compute, median ACC1, how far the lowest and the highest are from it) of each compute in these rows."""
    scored = {}  # {compute: [ACC1 of each seed]}
    for row in rows:
        scored.setdefault(float(row['budget'] or row['pflop']), []).append(score(row))
    return [(compute, middle := statistics.median(found), middle - min(found), max(found) - middle)
            for compute, found in sorted(scored.items())]


def score(row):
    """ACC1 of the averaged weights; of the others' recipes that of the raw ones, if it is higher."""
    found = [float(row[name]) for name in ('raw_acc1', 'ema_acc1') if row[name]]
    return found[-1] if RECIPES[row['recipe']][0] in (run_train, run_finetuned) else max(found)


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
    return 'claim' if path_hash(path)[0] % 2 else 'choose'


def path_hash(path):
    """SHA-256 of the path below data/train or data/val."""
    return hashlib.sha256(Path(*path.parts[2:]).as_posix().encode()).digest()


if __name__ == '__main__':
    settings.run(main)
