"""How far a trained network's answers can be trusted: what docs/trust.md says.

    python tests/bench/trust.py --step unknown    --data-dir data --checkpoint checkpoints/volo_d1/best.pth
    python tests/bench/trust.py --step attention  --data-dir data --checkpoint checkpoints/volo_d1/best.pth
    python tests/bench/trust.py --step suspects   --photos PHOTOS --pflop 0.077

`unknown`: thirds of DATA_DIR/val are drawn twenty times; temperature, outliers and the UNKNOWN_BELOW for an accuracy of
95 % come from the two others. ECE is the calibration error of the first, before and after the temperature, and with
labels drawn with just the probabilities that the network gives. Strange pictures are photographs that come with
scikit-learn, scikit-image and matplotlib (python -m pip install scikit-image), drawings of data1/ and noise.
`attention`: how much stronger class attention and attribution are on the plant, told by its green, than beside it.
`suspects`: a share of all labels of PHOTOS is drawn anew, a network is trained on them as train.py does, and
suspects.csv is compared with what was changed.
"""
import csv
import importlib.util
import os
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from recipes import run_train
from scipy.ndimage import binary_opening
from sklearn.metrics import roc_auc_score

import makedata
import mean_std
from common import settings
from common.data.folders import Files, find_in_class_folders, list_images
from common.data.sources import read_batches
from common.data.transforms import Transform
from common.evaluation.calibration import calibration_error, fit_temperature
from common.evaluation.outliers import certainty, fit_outliers, typicality
from common.evaluation.report import answers
from common.runtime.device import choose_device
from common.training import checkpoint
from extras.explain import explanations
from models import logits_and_features, restore_model

STEP = 'unknown'                  # or 'attention', 'suspects'
CHECKPOINT = 'checkpoints/volo_d1/best.pth'
DATA_DIR = 'data'                 # the split that it was trained on
PHOTOS = 'data1'                  # of `suspects`: one sub-folder for each class
PFLOP = 0.077                     # likewise
FLIPPED = 0.05                    # likewise: share of the labels
WANTED = 0.95                     # accuracy of the answers
PLANTS = 300                      # of `attention`
SEED = 0


def main(cfg):
    {'unknown': unknown, 'attention': attention, 'suspects': suspects}[cfg.STEP](cfg)


def unknown(cfg):
    saved = checkpoint.load(cfg.CHECKPOINT)
    paths = [Path(path) for path in list_images(Path(cfg.DATA_DIR, 'val'))]
    logits, features = outputs(saved, paths)
    targets = torch.tensor([saved['classes'].index(path.parent.name) for path in paths])
    with tempfile.TemporaryDirectory() as folder:
        strange = {name: outputs(saved, pictures) for name, pictures in strange_pictures(Path(folder)).items()}
    torch.manual_seed(cfg.SEED)
    orders = [torch.randperm(len(paths)) for _ in range(20)]
    rows = [one_division(logits, features, targets, strange, cfg.WANTED, order) for order in orders]
    print(f'{len(paths)} pictures of val, a third of them unseen; medians and ranges of 20 divisions')
    for name in rows[0]:
        values = sorted(row[name] for row in rows)
        print(f'    {name:36} {np.median(values):.3f}  ({values[0]:.3f} to {values[-1]:.3f})')


def one_division(logits, features, targets, strange, wanted, order):
    """What is measured, by name, where the first third of `order` is unseen."""
    unseen, fitted = order[:len(order) // 3], order[len(order) // 3:]
    temperature, known = fit_temperature(logits[fitted], targets[fitted]), fit_outliers(features[fitted])

    def confidence(logits, features):
        return (logits / temperature).softmax(1).amax(1)

    def certain(logits, features, own=False):
        return certainty(confidence(logits, features), typicality(features, known, own))

    scores = {'confidence': confidence, 'energy': lambda logits, features: logits.logsumexp(1),
              'typicality': lambda logits, features: typicality(features, known)}
    right = logits.argmax(1) == targets
    curve = answers(certain(logits[fitted], features[fitted], own=True), right[fitted])
    place = max((i for i, accuracy in enumerate(curve['accuracy']) if accuracy >= wanted), default=0)
    threshold = curve['certainty'][place]
    answered = certain(logits[unseen], features[unseen]) >= threshold
    calibrated = logits[unseen] / temperature
    drawn = calibrated.softmax(1).multinomial(1)[:, 0]
    row = {'temperature': temperature, 'ECE before': calibration_error(logits[unseen], targets[unseen]),
           'ECE after': calibration_error(calibrated, targets[unseen]),
           'ECE if exact': calibration_error(calibrated, drawn),
           'UNKNOWN_BELOW': threshold, 'answered, as promised': curve['answered'][place],
           'answered': answered.double().mean().item(),
           'accuracy of the answers': right[unseen][answered].double().mean().item()}
    row['answered less promised'] = row['answered'] - row['answered, as promised']
    for name, found in strange.items():
        row[f'unknown: {name}'] = (certain(*found) < threshold).double().mean().item()
        for score, function in scores.items():
            both = torch.cat([function(logits[unseen], features[unseen]), function(*found)])
            row[f'AUROC, {score}: {name}'] = roc_auc_score(np.arange(len(both)) < len(unseen), both)
    everything = torch.cat([certain(*found) for found in strange.values()])
    row['unknown: all of them'] = (everything < threshold).double().mean().item()
    return row


def outputs(saved, paths):
    """(logits (N, classes), features (N, dim)) of pictures."""
    net, transform = restore_model(saved).eval(), Transform.from_dict(saved['transform'])
    batches = (paths[start:start + 32] for start in range(0, len(paths), 32))
    with torch.no_grad():
        found = [logits_and_features(net, images[0]) for _, images, _ in read_batches(batches, [transform], Files)]
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def strange_pictures(folder):
    """{kind: paths of pictures that are no photographs of seedlings}."""
    libraries = [Path(importlib.util.find_spec(name).origin).parent for name in ('sklearn', 'skimage', 'matplotlib')]
    photographs = [Path(path) for place in ('sklearn/datasets', 'skimage/data', 'matplotlib/mpl-data/sample_data')
                   for library in libraries if library.name == place.partition('/')[0]
                   for path in list_images(library.parent / place)]
    drawings = [Path(path) for path in list_images(Path(__file__).resolve().parents[2] / 'data1')][::6]
    rng, noise = np.random.default_rng(0), []
    for number in range(40):
        side = (150, 8, 1, 30)[number % 4]  # from grains to one colour
        pixels = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        noise.append(folder / f'{number}.png')
        pixels.resize((150, 150), Image.Resampling.BICUBIC).save(noise[-1])
    return {f'{len(photographs)} photographs': photographs, f'{len(drawings)} drawings': drawings,
            f'{len(noise)} of noise': noise}


def attention(cfg):
    saved = checkpoint.load(cfg.CHECKPOINT)
    paths = [Path(path) for path in list_images(Path(cfg.DATA_DIR, 'val'))]
    random.Random(cfg.SEED).shuffle(paths)
    ratios = []
    for _, image, *maps in explanations(saved, paths[:cfg.PLANTS], 32, Files, choose_device()):
        pixels = np.asarray(image, float)
        plant = binary_opening(2 * pixels[..., 1] - pixels[..., 0] - pixels[..., 2] > 20, iterations=2)
        if 0.03 < plant.mean() < 0.6:  # else there is no telling
            large = [F.interpolate(values[None, None], plant.shape, mode='bilinear')[0, 0].numpy() for values in maps]
            ratios.append([values[plant].mean() / max(values[~plant].mean(), 1e-9) for values in large])
    for name, values in zip(('class attention', 'attribution'), np.array(ratios).T, strict=True):
        low, middle, high = np.quantile(values, (0.1, 0.5, 0.9))
        print(f'{name}: on the plant {middle:.1f} times what it is beside it (a tenth under {low:.1f}, a tenth over '
              f'{high:.1f}), stronger on {np.mean(values > 1):.1%} of {len(values)} plants')


def suspects(cfg):
    rng, wrong, count = random.Random(cfg.SEED), set(), 0
    images = find_in_class_folders(cfg.PHOTOS)
    classes = images.classes
    for number, (path, label) in enumerate(images.samples):
        name = classes[label]
        given = name
        if rng.random() < cfg.FLIPPED:
            given = rng.choice([other for other in classes if other != name])
            wrong.add(f'{given}/{number}{Path(path).suffix}')
        target = Path('flipped', given, f'{number}{Path(path).suffix}')
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_symlink():
            os.symlink(Path(path).resolve(), target)
    makedata.main(settings.read(makedata, ['--source-dir', 'flipped', '--near-duplicates', 'false']))
    mean_std.main(settings.read(mean_std, ['--data-dir', 'data/train']))
    run_train('--view above', cfg.PFLOP, 1)
    with open('out/suspects.csv', encoding='utf-8-sig', newline='') as file:
        listed = [row['file'] for row in csv.DictReader(file)]
    for sides in (('train',), ('val',), ('train', 'val')):
        found = [file.split('/', 1)[1] in wrong for file in listed if file.split('/')[0] in sides]
        pictures = [f'{path.parent.name}/{path.name}' for side in sides
                    for path in map(Path, list_images(Path('data', side)))]
        changed, count = sum(name in wrong for name in pictures), round(cfg.FLIPPED * len(pictures))
        print(f'{" and ".join(sides)}: {changed} of {len(pictures)} labels are wrong; the first {count} of the list '
              f'hold {sum(found[:count]) / changed:.1%} of them ({np.mean(found[:count]):.1%} of these are wrong), all '
              f'{len(found)} of it {sum(found) / changed:.1%} ({np.mean(found):.1%})')


if __name__ == '__main__':
    settings.run(main)
