"""What corrected labels and chosen labels bring: what extras/review/README.md says of it.

    python tests/bench/review.py --step noise --photos PHOTOS --noise 0.05 --looks 0 --seed 1
    python tests/bench/review.py --step noise --photos PHOTOS --noise 0.05 --looks 100 --seed 1
    python tests/bench/review.py --step peer --photos PHOTOS --noise 0.05 --seed 1
    python tests/bench/review.py --step choose --photos PHOTOS --how review --seed 1

`noise`: a share of the labels of train is drawn anew; those of val stay right. A network is trained on them as train.py
does, and an oracle looks at the first so many images of train that the page of this run asks for: the labels that it
corrects are right in a second training. Without looks there is the first training only; with --noise 0 all labels are
right.
`peer`: how many wrong labels the same looks find in cleanlab's list (python -m pip install cleanlab). It is made from
networks that were trained on the other three quarters of train, with as much compute together as the one network had.
`choose`: a network is trained on 35 of 50 labelled images and validated on the others, as a person would, the next 50
are chosen by what it is unsure of (--how review) or at random (--how random), and so on, five rounds, each from
scratch. The accuracy is that on val, whose labels the person does not have.

Each call is a run of its own, which goes on where it was interrupted, and adds a row to TABLE (one for each round of
`choose`); what is in the table already is not done again: other PFLOP and OPTIONS need a TABLE and a WORK_DIR of their
own. The first call of `noise` for a seed should have no looks,
since all others need its training. OMP_NUM_THREADS=1 keeps it on one core. `found` is how many wrong labels the looks
found; where there were none, what 100, 200, 400 and as many looks as there are wrong labels would find.
"""
import csv
import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from recipes import run_train

import makedata
import mean_std
from common import settings
from common.data.folders import find_in_class_folders
from common.data.listing import list_images
from common.evaluation.metrics import scores
from common.evaluation.predictor import Predictor
from common.runtime.errors import UserError
from extras.review.corrections import Correction, write_corrections
from extras.review.teaching import Pool

STEP = 'noise'                    # or 'peer', 'choose'
PHOTOS = 'data1'                  # One sub-folder for each class.
NOISE = 0.05                      # Share of the labels of train that are wrong.
LOOKS = 0                         # Images that the oracle looks at.
HOW = 'review'                    # How `choose` chooses: 'review' or 'random'.
ROUNDS = 5                        # Rounds of `choose`.
PER_ROUND = 50                    # Images that are labelled in each.
PFLOP = 0.077                     # Compute of each training.
OPTIONS = ''                      # More options of train.py.
SEED = 1
TABLE = 'review.csv'              # It gets the rows.
WORK_DIR = 'bench'                # Splits and checkpoints go there.

FOLDS = 4    # networks of the peer
LOOKED_AT = (100, 200, 400)  # in the rows of lists
COLUMNS = ('step', 'photos', 'noise', 'seed', 'looks', 'how', 'round', 'labels', 'wrong', 'found', 'acc1', 'low',
           'high', 'pflop', 'minutes')


def main(cfg):
    table = Path(cfg.TABLE).resolve()
    photos = Path(cfg.PHOTOS).resolve()
    work = Path(cfg.WORK_DIR, f'{photos.name}-{cfg.STEP}-{cfg.HOW}-{cfg.NOISE}-{cfg.SEED}').resolve()
    row = {'step': cfg.STEP, 'photos': photos.name, 'noise': cfg.NOISE, 'seed': cfg.SEED}
    if cfg.STEP == 'choose':
        choose(cfg, photos, work, table, {**row, 'noise': '', 'how': cfg.HOW})
        return
    work = work.with_name(f'{photos.name}-noise-{cfg.NOISE}-{cfg.SEED}')
    row = {**row, 'looks': cfg.LOOKS if cfg.STEP == 'noise' else ''}
    if is_there(table, row):
        print('this row is in the table')
        return
    {'noise': noise, 'peer': peer}[cfg.STEP](cfg, photos, work, table, row)


# Wrong labels

def noise(cfg, photos, work, table, row):
    flips = make_noisy(cfg, photos, work / 'first', corrected=())
    first = train(cfg)
    wrong = {flip.file for flip in flips}
    in_train = set(train_files(photos))
    asked = [file for file in asked_for('out/report.html') if file in in_train]
    if cfg.LOOKS == 0:
        found = ' '.join(str(len(wrong & set(asked[:looks]))) for looks in (*LOOKED_AT, len(wrong)))
        write_row(table, {**row, 'wrong': len(wrong), 'found': found, **first})
        return
    corrected = wrong & set(asked[:cfg.LOOKS])
    make_noisy(cfg, photos, work / f'after {cfg.LOOKS}', corrected)
    write_row(table, {**row, 'wrong': len(wrong), 'found': len(corrected), **train(cfg)})


def make_noisy(cfg, photos, work, corrected):
    """Split the photographs into `work`, the current folder from now on, and return what is wrong in train.

    The wrong labels are corrections that makedata.py follows. `corrected` are files whose labels are right again.
    """
    work.mkdir(parents=True, exist_ok=True)
    os.chdir(work)
    arguments = ['--source-dir', str(photos), '--link', 'true', '--near-duplicates', 'false']
    if not Path('data').exists():
        makedata.main(settings.read(makedata, arguments))
    classes = sorted(path.name for path in Path('data', 'train').iterdir())
    rng = random.Random(cfg.SEED)
    flips = []
    files = train_files(photos)
    for file in rng.sample(files, round(cfg.NOISE * len(files))):
        true = Path(file).parts[0]
        given = rng.choice([name for name in classes if name != true])
        flips.append(Correction(file, given, true, '', ''))
    left = [flip for flip in flips if flip.file not in corrected]
    if left:
        write_corrections(Path('flips.csv'), left)
        makedata.main(settings.read(makedata, [*arguments, '--corrections', 'flips.csv']))
        os.unlink('data/corrections.csv')  # the page must not take them for what a person decided
    mean_std.main(settings.read(mean_std, ['--data-dir', 'data/train']))
    return flips


def train_files(photos):
    """Return the paths below `photos` of the images of train, of the split in the current folder."""
    with open('data/split.csv', newline='', encoding='utf-8') as file:
        return [Path(row['source']).relative_to(photos).as_posix()
                for row in csv.DictReader(file) if row['side'] == 'train']


def train(cfg, val='data/val'):
    """Train in the current folder, and return the columns of a row; the accuracy is that on the folder `val`."""
    trained = run_train(cfg.OPTIONS, cfg.PFLOP, cfg.SEED)
    acc1, low, high = score(trained.weights['ema'], val)
    return {'acc1': acc1, 'low': low, 'high': high, 'pflop': round(trained.pflop, 4),
            'minutes': round(trained.seconds / 60, 2)}


def score(saved, val):
    """Return (ACC1 on the images of a folder, the ends of its interval), in percent."""
    found = [one for one in Predictor({'ema': saved})(list_images(val)) if not one.error]
    targets = [saved['classes'].index(Path(one.image).relative_to(val).parts[0]) for one in found]
    result = scores(torch.stack([one.logits for one in found]), torch.tensor(targets), saved['classes'])
    return tuple(round(value, 2) for value in (result['acc1'], *result['acc1_interval']))


def asked_for(page):
    """Return the files that a page asks for, in its order."""
    text = Path(page).read_text(encoding='utf-8')
    if 'id="review-data"' not in text:
        return []
    data = json.loads(text.partition('id="review-data">')[2].partition('</script>')[0])
    return [file for item in data['items'] for file in item['files']]


def peer(cfg, photos, work, table, row):
    try:
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        raise UserError('python -m pip install cleanlab') from None
    flips = make_noisy(cfg, photos, work / 'peer', corrected=())
    wrong = {flip.file for flip in flips}
    source = {}
    with open('data/split.csv', newline='', encoding='utf-8') as file:
        for entry in csv.DictReader(file):
            source[entry['file']] = Path(entry['source']).relative_to(photos).as_posix()
    whole = find_in_class_folders('data/train')
    order = random.Random(cfg.SEED).sample(range(len(whole.samples)), len(whole.samples))
    names = []
    labels = []
    probabilities = []
    start = time.monotonic()
    for fold in range(FOLDS):
        held_out = order[fold::FOLDS]
        make_fold(work / f'fold {fold}', work / 'peer', whole, set(held_out))
        trained = run_train(cfg.OPTIONS, cfg.PFLOP / FOLDS, cfg.SEED)
        predictor = Predictor({'ema': trained.weights['ema']})
        paths = [str(work / 'peer' / whole.samples[number][0]) for number in held_out]
        for number, found in zip(held_out, predictor(paths), strict=True):
            names.append(source[Path(whole.samples[number][0]).relative_to('data').as_posix()])
            labels.append(whole.samples[number][1])
            probabilities.append(found.logits.softmax(0))
    quality = get_label_quality_scores(torch.tensor(labels).numpy(), torch.stack(probabilities).numpy())
    listed = [names[place] for place in quality.argsort(kind='stable')]
    found = ' '.join(str(len(wrong & set(listed[:looks]))) for looks in (*LOOKED_AT, len(wrong)))
    write_row(table, {**row, 'wrong': len(wrong), 'found': found, 'pflop': cfg.PFLOP,
                      'minutes': round((time.monotonic() - start) / 60, 2)})


def make_fold(work, origin, whole, held_out):
    """Make data/train in `work`, the current folder from now on, of links to all images but some; val is the same."""
    shutil.rmtree(work / 'data', ignore_errors=True)
    for number, (path, target) in enumerate(whole.samples):
        if number not in held_out:
            link = work / 'data' / 'train' / whole.classes[target] / f'{number}{Path(path).suffix}'
            link.parent.mkdir(parents=True, exist_ok=True)
            os.symlink(origin / path, link)
    os.symlink(origin / 'data' / 'val', work / 'data' / 'val')
    shutil.copy(origin / 'mean_std.json', work)
    os.chdir(work)


# Choosing what to label

def choose(cfg, photos, work, table, row):
    """Train in rounds; state.json in `work` has the images that are labelled so far."""
    work.mkdir(parents=True, exist_ok=True)
    os.chdir(work)
    if not Path('whole', 'mean_std.json').exists():
        Path('whole').mkdir(exist_ok=True)
        os.chdir('whole')
        makedata.main(settings.read(makedata, ['--source-dir', str(photos), '--link', 'true', '--near-duplicates',
                                               'false']))
        mean_std.main(settings.read(mean_std, ['--data-dir', 'data/train']))
        os.chdir(work)
    pool = [str(Path(path).relative_to('whole/data/train')) for path in list_images('whole/data/train')]
    random.Random(cfg.SEED).shuffle(pool)
    state = Path('state.json')
    labelled = json.loads(state.read_text()) if state.exists() else first_images(pool, cfg.PER_ROUND)
    for number in range(len(labelled) // cfg.PER_ROUND, cfg.ROUNDS + 1):
        this_round = {**row, 'round': number, 'labels': len(labelled)}
        os.chdir(work)
        make_round(work / f'round {number}', work / 'whole', labelled)
        columns = train(cfg, str(work / 'whole' / 'data' / 'val'))
        if not is_there(table, this_round):
            write_row(table, {**this_round, **columns})
        if number < cfg.ROUNDS:
            labelled += next_images(cfg, pool, labelled, work)
            (work / state).write_text(json.dumps(labelled))


def first_images(pool, count):
    """Return the first images of a random order, but two of each class, which train.py needs."""
    of_class = {}
    for name in pool:
        of_class.setdefault(Path(name).parts[0], []).append(name)
    chosen = [name for names in of_class.values() for name in names[:2]]
    chosen += [name for name in pool if name not in chosen]
    return chosen[:count]


def make_round(work, whole, labelled):
    shutil.rmtree(work / 'data', ignore_errors=True)
    of_class = Counter()
    for name in labelled:
        number = of_class[Path(name).parts[0]]  # of every ten of a class the third, sixth and ninth validate
        of_class[Path(name).parts[0]] += 1
        link = work / 'data' / ('val' if number % 10 in (2, 5, 8) else 'train') / name
        link.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(whole / 'data' / 'train' / name, link)
    for name in of_class:
        (work / 'data' / 'val' / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(whole / 'mean_std.json', work)
    os.chdir(work)


def next_images(cfg, pool, labelled, work):
    """Return the images to label next: those that test.py's REVIEW would ask for first, or the next ones at random."""
    known = set(labelled)
    left = [name for name in pool if name not in known]
    if cfg.HOW == 'random':
        return left[:cfg.PER_ROUND]
    folder = work / 'whole' / 'data' / 'train'
    candidates = Pool(cfg.PER_ROUND)
    predictor = Predictor('out/best.pth', keep_features=True)
    for name, found in zip(left, predictor(str(folder / name) for name in left), strict=True):
        if not found.error:
            candidates.add(name, found)
    return [found.name for found in candidates.most_valuable()]


# The table

def is_there(table, row):
    if not table.exists():
        return False
    with open(table, newline='', encoding='utf-8') as file:
        return any(all(found[key] == str(value) for key, value in row.items()) for found in csv.DictReader(file))


def write_row(table, row):
    is_new = not table.exists()
    with open(table, 'a', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, COLUMNS)
        if is_new:
            writer.writeheader()
        writer.writerow(row)
    print(json.dumps(row))


if __name__ == '__main__':
    settings.run(main)
