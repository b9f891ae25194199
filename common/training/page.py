"""report.html of a training run: its scores, curves, pictures, settings and versions."""
import json
import platform
import time
from collections import defaultdict
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from PIL import Image
from torch.utils.data import default_collate
from torchvision.transforms.v2.functional import to_pil_image

from common.data.datasets import ImageFolder
from common.data.folders import is_side
from common.data.loaders import Data
from common.data.split import MALFORMED, read_split_table
from common.reporting.page import (
    Section,
    Thumbnails,
    as_uri,
    curve_sections,
    described,
    headline_tiles,
    making,
    report_sections,
    write_page,
)
from common.reporting.tables import write_suspects
from common.runtime.console import format_duration, printable
from common.runtime.device import describe_device, to_device
from common.runtime.disks import regular
from common.runtime.errors import UserError, extra, warn_instead
from common.runtime.names import BadName, inside
from common.training.log import name_in_split
from common.training.step import TrainState, seed_batch

TIME_SHARE = 0.02       # of the time of a run, which its pages may take before the last
AUGMENTED_IMAGES = 12   # as the network saw them
TWIN_GROUPS = 24        # of near-identical images with different labels
LEAST_SIDE = 256        # pixels, of an image as it is read for the page, if its file has them


class RunPage:
    """Writes the page after epochs, as often as its TIME_SHARE allows, and after the last one.

    `facts` is what log.describe_run returned.
    """

    def __init__(self, facts: dict, state: TrainState, data: Data, out: Path):
        self.facts = facts
        self.settings = facts['settings']
        self.state = state
        self.data = data
        self.out = out
        self.thumbnail = Thumbnails(partial(open_image, data))  # a method would keep the data alive, in a circle
        self.review: Any = None
        self.twins: list | None = None
        self.spent = 0.    # seconds, for all pages so far
        self.longest = 0.  # seconds, for one of them

    def after_epoch(self, history: list[dict]) -> None:
        """Write the page if it is time for it. What goes wrong becomes a warning."""
        last = len(history) >= self.state.plan.epochs
        if not last and self.spent + self.longest > TIME_SHARE * self.state.clock.elapsed:
            return
        start = time.perf_counter()
        with warn_instead(), making(self.out / 'report.html'):
            self.write(history)
        seconds = time.perf_counter() - start
        self.spent += seconds
        self.longest = max(self.longest, seconds)

    def write(self, history: list[dict]) -> None:
        """Write report.html, and the suspects in it as suspects.csv."""
        report = json.loads(regular(self.out / 'report.json').read_text(encoding='utf-8'))
        report['suspects'] = sorted([*report['suspects'], *self.suspects()], key=lambda item: item['score'])
        write_suspects(self.out / 'suspects.csv', report['suspects'])
        tiles = headline_tiles(report, f'on val, which chose epoch {report["epoch"]}, {report["weights"]} weights')
        is_last = len(history) >= self.state.plan.epochs
        sections = [self.review_section(report, is_last), *curve_sections(history)]
        sections += report_sections(report, self.thumbnail)
        sections += [self.twin_section(), self.batch_section(len(history) - 1), self.facts_section()]
        source = self.facts['provenance']['source']
        start = 'from scratch' if source == 'scratch' else f'from {source}'
        subtitle = (f'{self.facts["model"]}, trained {start} on {len(self.data.train.dataset)} images of '
                    f'{len(self.data.classes)} classes; epoch {len(history)} of {self.state.plan.epochs}')
        title = f'{self.out.name}: a network for {Path(self.settings["DATA_DIR"]).name}'
        write_page(self.out / 'report.html', printable(title), printable(subtitle), [*tiles, *self.tiles(history)],
                   [section for section in sections if section.keys() - {'name', 'heading', 'note'}])
        self.thumbnail.keep_shown()

    def suspects(self) -> list[dict[str, Any]]:
        """Return training images whose label may be wrong, as those of val in report.json."""
        dataset = self.data.train.dataset
        classes = self.data.classes
        found = []
        for index, guess, score in self.state.margins.suspects():
            file = name_of_own(dataset, index)
            if file is not None:
                found.append({'file': file, 'class': classes[dataset.targets[index]], 'perhaps': classes[guess],
                              'score': score})
        return found

    def review_section(self, report: dict[str, Any], is_last: bool) -> Section:
        """Return the section in which labels are corrected, {} without the extra or if nothing is worth a look."""
        if self.review is None:
            with suppress(UserError):  # the page does without
                with extra('report.html'):
                    from extras.review.sections import RunReview
                self.review = RunReview(self.settings['DATA_DIR'], self.data.classes, partial(open_image, self.data))
        if self.review is None:
            return {}
        return self.review.section(report, [[file for file, _ in group] for group in self.find_twins()], is_last)

    def tiles(self, history: list[dict]) -> list[tuple[str, str, str]]:
        """Return the tiles of a training run: [(label, value, note)]."""
        last = history[-1]
        acc1 = last['raw_acc1']
        note = 'ACC1 whatever val says'
        if last['ema_acc1'] is not None:
            acc1 = last['ema_acc1']
            note += ', EMA weights'
        pflop = sum(row['pflop'] or 0 for row in history)
        speed = f'{last["images_per_s"]:.0f} images/s'
        if pflop:
            speed += f', {pflop:.3g} PFLOP'
        return [('last epoch', '–' if acc1 is None else f'{acc1:.1f} %', note),
                ('training', format_duration(sum(row['seconds'] for row in history)), speed)]

    def batch_section(self, epoch: int) -> Section:
        """Return images of the first batch of an epoch, counted from 0, and what the network saw of them."""
        dataset = self.data.train.dataset
        keys = self.data.train.batch_sampler.order()[:self.settings['BATCH_SIZE']].tolist()
        images, labels = default_collate([dataset[index, seed] for index, seed in keys])
        seed_batch(self.settings['SEED'], epoch * self.state.plan.updates_per_epoch + 1, 0)  # as every batch does
        images, labels = to_device([images, labels], self.state.device)
        images, targets = self.state.mix(self.data.augment(images), labels)
        learnt = self.state.teach(images, targets).cpu()
        if learnt.ndim == 3:
            learnt = learnt[:, 0]  # of the images; the others are of tokens
        images = images.float().cpu()
        mean = torch.tensor(self.data.transform.mean)[:, None, None]
        std = torch.tensor(self.data.transform.std)[:, None, None]
        from_elsewhere = Thumbnails(partial(dataset.store.open, at_least=LEAST_SIDE))
        pictures = []
        for (index, _), image, target in zip(keys[:AUGMENTED_IMAGES], images, learnt, strict=False):
            file = name_of_own(dataset, index)
            small = from_elsewhere(dataset.samples[index][0]) if file is None else self.thumbnail(file)
            shares, labelled = target.topk(min(2, len(target)))
            mixed = [f'{self.data.classes[i]} {share:.0%}' for share, i in zip(shares, labelled, strict=True)
                     if share > self.settings['SMOOTHING'] / len(target) + 0.01]
            seen = to_pil_image((image * std + mean).clamp(0, 1))
            pictures.append({'images': [small, as_uri(seen)],
                             'lines': [('', printable(', '.join(mixed)))]})
        return {'name': 'batch', 'heading': 'As the network saw them', 'pictures': pictures, 'note':
                f'Images of the first batch of epoch {epoch + 1}, beside them what augmentation made of them, and the '
                'labels that they were trained on, or what the TEACHER says of them.'}

    def twin_section(self) -> Section:
        """Return near-identical images of different classes, as makedata.py found them."""
        twins = self.find_twins()
        if not twins:
            return {}
        return {'name': 'twins', 'heading': 'One photograph, two classes', 'note':
                f'{len(twins)} groups of images that makedata.py found to be the same but for size, quality or '
                'turns lie in folders of different classes: unless they only look alike, one label of each is wrong.',
                'pictures': [
                    described(self.thumbnail, {'file': file}, ('wrong', name))
                    for group in twins[:TWIN_GROUPS] for file, name in group]}

    def find_twins(self) -> list[list[tuple[str, str]]]:
        """Return what the function of this name found, once for all pages."""
        if self.twins is None:
            self.twins = find_twins(Path(self.settings['DATA_DIR']))
        return self.twins

    def facts_section(self) -> Section:
        """Return settings, versions and what is known of the data."""
        transform = self.data.transform
        origin = {'device': describe_device(self.state.device, self.state.amp_dtype),
                  'system': platform.platform(), 'Python': platform.python_version(), 'torch': torch.__version__,
                  'torchvision': torchvision.__version__, 'timm': timm.__version__,
                  'weights': self.facts['provenance']['source'],
                  'mean of the colours': transform.mean, 'their standard deviation': transform.std,
                  'images (hash of names, classes and sizes)': self.data.fingerprint}
        return {'name': 'settings', 'heading': 'Settings', 'facts': [
            (heading, [(name, printable(str(value))) for name, value in facts.items()])
            for heading, facts in (('Constants of train.py', self.settings), ('Versions and data', origin))]}


def name_of_own(dataset: ImageFolder, index: int) -> str | None:
    """Return the name_in_split of a training image, or None for one from elsewhere, which TEACHER has labelled."""
    path = dataset.samples[index][0]
    if not Path(path).is_relative_to(dataset.root):
        return None
    return name_in_split(dataset, path)


def open_image(data: Data, file: str, at_least: int = LEAST_SIDE) -> Image.Image:
    """Return an image of train or val by its name_in_split, which has `at_least` so many pixels on its shorter side if
    the file has them. Raises UserError.
    """
    folder, _, rest = file.partition('/')
    for side, loader in (('train', data.train), ('val', data.val)):
        if is_side(folder, side):
            return loader.dataset.store.open(inside(loader.dataset.root, rest), at_least)
    raise BadName(f'{file!r} lies neither in train nor in val')


def find_twins(data_dir: Path) -> list[list[tuple[str, str]]]:
    """Return [[(file, class) of each image of a group]] of split.csv, of the groups with several classes.

    [] where GROUP or LABELS may have made groups of images that need not be alike.
    """
    groups = defaultdict(list)
    try:
        settings: dict[str, Any] = json.loads(regular(data_dir / 'split.json').read_text(encoding='utf-8'))['settings']
        if settings.get('GROUP') or settings.get('LABELS'):
            return []
        for row in read_split_table(data_dir):
            if row['side'] != 'test':
                groups[row['group']].append((row['file'], row['class']))
    except MALFORMED:  # not made by makedata.py
        return []
    return [group for group in groups.values() if len({name for _, name in group}) > 1]
