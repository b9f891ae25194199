"""report.html of a training run: its scores, curves, pictures, settings and versions."""
import csv
import json
import platform
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from PIL import Image
from torch.utils.data import default_collate
from torchvision.transforms.v2.functional import resize, to_pil_image

from common.data.loaders import Data
from common.data.split import SPLIT_TABLE
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
from common.runtime.device import describe_device
from common.runtime.errors import warn_instead
from common.settings import Settings
from common.training.step import TrainState, seed_batch

SHARE = 0.02  # of the time of a run, which its pages may take before the last
SEEN = 12     # augmented pictures
TWINS = 24    # pairs of near-identical pictures with different labels


class RunPage:
    """Writes the page after epochs, as often as its SHARE allows, and after the last one."""

    def __init__(self, cfg: Settings, state: TrainState, data: Data, out: Path):
        self.cfg, self.state, self.data, self.out = cfg, state, data, out
        self.thumbnail, self.twins = Thumbnails(self.open_image), None
        self.spent = self.longest = 0.  # seconds

    def after_epoch(self, history: list[dict], size: tuple[int, int]) -> None:
        """`size` is the (height, width) of the images of the last epoch. What goes wrong becomes a warning."""
        last = len(history) >= self.state.plan.epochs
        if not last and self.spent + self.longest > SHARE * self.state.clock.elapsed:
            return
        start = time.perf_counter()
        with warn_instead(), making(self.out / 'report.html'):
            self.write(history, size)
        seconds = time.perf_counter() - start
        self.spent, self.longest = self.spent + seconds, max(self.longest, seconds)

    def write(self, history: list[dict], size: tuple[int, int]) -> None:
        report = json.loads((self.out / 'report.json').read_text(encoding='utf-8'))
        report['suspects'] = sorted([*report['suspects'], *self.suspects()], key=lambda item: item['score'])
        write_suspects(self.out / 'suspects.csv', report['suspects'])
        tiles = headline_tiles(report, f'on val, which chose epoch {report["epoch"]}, {report["weights"]} weights')
        sections = [*curve_sections(history), *report_sections(report, self.thumbnail)]
        sections += [self.twin_section(), self.batch_section(len(history) - 1, size), self.facts()]
        provenance, cfg = self.state.provenance, self.cfg
        start = 'from scratch' if provenance.from_scratch else f'from {provenance.source}'
        subtitle = (f'{cfg.MODEL}, trained {start} on {len(self.data.train.dataset)} pictures of '
                    f'{len(self.data.classes)} classes; epoch {len(history)} of {self.state.plan.epochs}')
        write_page(self.out / 'report.html', printable(f'{self.out.name}: a network for {Path(cfg.DATA_DIR).name}'),
                   printable(subtitle), [*tiles, *self.tiles(history)],
                   [section for section in sections if section.keys() - {'name', 'heading', 'note'}])

    def suspects(self) -> list[dict[str, Any]]:
        """Training pictures whose label may be wrong, as those of val in report.json."""
        dataset, classes = self.data.train.dataset, self.data.classes
        return [{'file': f'train/{Path(dataset.samples[index][0]).relative_to(dataset.root).as_posix()}',
                 'class': classes[dataset.targets[index]], 'perhaps': classes[guess], 'score': score}
                for index, guess, score in self.state.margins.suspects()]

    def open_image(self, file: str) -> Image.Image:
        """A picture named as in split.csv: train/CLASS/NAME or val/CLASS/NAME."""
        side, _, rest = file.partition('/')
        dataset = (self.data.train if side == 'train' else self.data.val).dataset
        return dataset.store.open(Path(dataset.root, rest), at_least=256)

    def tiles(self, history: list[dict]) -> list[tuple[str, str, str]]:
        last = history[-1]
        acc1 = last['raw_acc1'] if last['ema_acc1'] is None else last['ema_acc1']
        pflop = sum(row.get('pflop') or 0 for row in history)
        speed = last['images_per_s']
        return [('last epoch', '–' if acc1 is None else f'{acc1:.1f} %', 'ACC1 whatever val says'
                 + ('' if last['ema_acc1'] is None else ', EMA weights')),
                ('training', format_duration(sum(row['seconds'] for row in history)),
                 f'{speed:.0f} images/s' + (f', {pflop:.3g} PFLOP' if pflop else ''))]

    def batch_section(self, epoch: int, size: tuple[int, int]) -> Section:
        """Pictures of the first batch of an epoch, counted from 0, and what the network saw of them."""
        dataset, sampler = self.data.train.dataset, self.data.train.batch_sampler
        keys = sampler.order()[:self.cfg.BATCH_SIZE].tolist()
        images, labels = default_collate([dataset[index, seed] for index, seed in keys])
        seed_batch(self.cfg.SEED, epoch * self.state.plan.updates_per_epoch + 1, 0)  # as every batch does
        images = resize(images, size)
        images, targets = self.state.mix(images.to(self.state.device), labels.to(self.state.device))
        transform, pictures = self.data.transform, []
        mean, std = (torch.tensor(values)[:, None, None] for values in (transform.mean, transform.std))
        for (index, _), image, target in zip(keys[:SEEN], images.float().cpu(), targets.cpu(), strict=False):
            file = f'train/{Path(dataset.samples[index][0]).relative_to(dataset.root).as_posix()}'
            shares, labelled = target.topk(min(2, len(target)))
            mixed = [f'{self.data.classes[i]} {share:.0%}' for share, i in zip(shares, labelled, strict=True)
                     if share > self.cfg.SMOOTHING / len(target) + 0.01]
            pictures.append({'images': [self.thumbnail(file), as_uri(to_pil_image((image * std + mean).clamp(0, 1)))],
                             'lines': [('', printable(', '.join(mixed)))]})
        return {'name': 'batch', 'heading': 'As the network saw them', 'pictures': pictures, 'note':
                f'Pictures of the first batch of epoch {epoch + 1}, beside them what augmentation made of them, at the '
                f'{size[0]} × {size[1]} pixels that they had then, and the labels that they were trained on.'}

    def twin_section(self) -> Section:
        """Near-identical pictures of different classes, as makedata.py found them."""
        if self.twins is None:
            self.twins = find_twins(Path(self.cfg.DATA_DIR))
        return {'name': 'twins', 'heading': 'One photograph, two classes', 'note':
                f'{len(self.twins)} groups of pictures that makedata.py found to be the same but for size, quality or '
                'turns lie in folders of different classes: one label of each must be wrong.', 'pictures': [
                    described(self.thumbnail, {'file': file}, ('wrong', name))
                    for group in self.twins[:TWINS] for file, name in group]} if self.twins else {}

    def facts(self) -> Section:
        provenance, transform = self.state.provenance, self.data.transform
        origin = {'device': describe_device(self.state.device, self.state.amp_dtype),
                  'system': platform.platform(), 'Python': platform.python_version(), 'torch': torch.__version__,
                  'torchvision': torchvision.__version__, 'timm': timm.__version__, 'weights': provenance.source,
                  'mean of the colours': transform.mean, 'their standard deviation': transform.std,
                  'pictures (hash of names, classes and sizes)': self.data.fingerprint}
        return {'name': 'settings', 'heading': 'Settings', 'facts': [
            (heading, [(name, printable(str(value))) for name, value in facts.items()])
            for heading, facts in (('Constants of train.py', vars(self.cfg)), ('Versions and data', origin))]}


def find_twins(data_dir: Path) -> list[list[tuple[str, str]]]:
    """[[(file, class) of each picture of a group]] of split.csv, of the groups with several classes.

    [] where GROUP or LABELS may have made groups of pictures that need not be alike.
    """
    groups = defaultdict(list)
    try:
        settings: dict[str, Any] = json.loads((data_dir / 'split.json').read_text(encoding='utf-8'))['settings']
        if settings.get('GROUP') or settings.get('LABELS'):
            return []
        with open(data_dir / SPLIT_TABLE, newline='', encoding='utf-8', errors='surrogateescape') as file:
            for row in csv.DictReader(file):
                if row['side'] != 'test':
                    groups[row['group']].append((row['file'], row['class']))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error):  # not made by makedata.py
        return []
    return [group for group in groups.values() if len({name for _, name in group}) > 1]
