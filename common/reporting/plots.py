"""Pictures of a run: curves, the confusion matrix, a contact sheet.

Whatever goes wrong in drawing is a UserError: no picture is worth a run.
"""
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from common.reporting.tables import headline
from common.runtime.console import printable
from common.runtime.errors import UserError
from common.runtime.files import replacing

_CJK = {'Noto Sans CJK SC', 'Noto Sans CJK JP', 'Source Han Sans SC', 'Microsoft YaHei', 'PingFang SC', 'SimHei',
        'Hiragino Sans GB', 'WenQuanYi Micro Hei', 'WenQuanYi Zen Hei'}  # class names may be Chinese


@contextmanager
def drawn(path: Path, width: float, height: float) -> Iterator:
    """Yields an empty matplotlib figure of so many inches, which is written to `path` at the end. Raises UserError.

    matplotlib is imported here, so that a run's first update need not wait for it.
    """
    try:
        import matplotlib
        from matplotlib import font_manager
        from matplotlib.figure import Figure

        matplotlib.rcParams['font.family'] = ['DejaVu Sans', *sorted(_CJK.intersection(font_manager.get_font_names()))]
        matplotlib.rcParams['text.parse_math'] = False  # class names may hold a $
        warnings.filterwarnings('ignore', message='Glyph .* missing from font')  # or an emoji
        figure = Figure(figsize=(width, height), dpi=110, layout='constrained')
        yield figure
        with replacing(path) as aside:
            figure.savefig(aside, format='png')
    except UserError:
        raise
    except Exception as error:  # matplotlib's errors are of a dozen types
        raise UserError(f'{path} could not be drawn ({type(error).__name__}: {error})') from error


def plot_training(folder: Path, history: list[dict], best: dict) -> None:
    """loss.png, acc.png and lr.png from the rows of the log, the best epoch marked."""
    star = best['epoch'], best['acc1'], f'best: {best["acc1"]:.1f} % ({best["weights"]} weights)'
    losses = {'train_loss': 'training (smoothed labels)', 'raw_loss': 'validation', 'ema_loss': 'validation (EMA)'}
    accs = {'train_acc1': 'training (augmented)', 'raw_acc1': 'validation', 'ema_acc1': 'validation (EMA)'}
    plot_curves(folder / 'loss.png', history, losses, 'loss')
    plot_curves(folder / 'acc.png', history, accs, 'ACC1, %', star)
    plot_curves(folder / 'lr.png', history, {'lr': 'learning rate'}, "learning rate at the epoch's end")


def plot_curves(path: Path, rows: list[dict], curves: dict[str, str], ylabel: str,
                star: tuple[int, float, str] | None = None) -> None:
    """Draw columns of the log over the epochs: `curves` is {column: legend}, `star` (epoch, value, legend) a mark."""
    with drawn(path, 7, 4.2) as figure:
        axes = figure.add_subplot()
        for column, legend in curves.items():
            points = [(row['epoch'], row[column]) for row in rows if row[column] is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=legend, marker='.' if len(points) < 40 else None)
        if star:
            axes.plot(*star[:2], 'k*', markersize=10, label=star[2])
        axes.set(xlabel='epoch', ylabel=ylabel)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
        if len(curves) > 1 or star:
            axes.legend(frameon=False)


def plot_confusion(path: Path, scores: dict, classes: list[str]) -> None:
    """Draw a confusion matrix, rows in percent of the class, counts in the cells when there is room for them."""
    counts = scores['confusion']  # (classes, classes), rows: truth
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(20, 3.5 + 0.45 * len(classes))
    with drawn(path, side + 1, side) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(share, cmap='Blues', vmin=0, vmax=1)
        figure.colorbar(image, ax=axes, shrink=0.7, label='share of the true class')
        if len(classes) <= 60:
            names = [printable(name) for name in classes]
            axes.set_xticks(range(len(names)), names, rotation=45, ha='right', rotation_mode='anchor')
            axes.set_yticks(range(len(names)), names)
        if len(classes) <= 30:
            for row, column in zip(*counts.nonzero(), strict=True):
                axes.text(column, row, counts[row, column], ha='center', va='center', fontsize=8,
                          color='white' if share[row, column] > 0.5 else 'black')
        axes.set(xlabel='predicted', ylabel='true', title=headline(scores))


def plot_reliability(path: Path, scores: dict) -> None:
    """Draw the accuracy of images over their confidence, on the diagonal where both agree, and how many there are."""
    found = scores['reliability']
    edges, there = np.linspace(0, 1, len(found['count']) + 1), found['count'] > 0
    with drawn(path, 5, 5.5) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color='grey', linestyle='--', linewidth=1, label='confidence = accuracy')
        upper.bar(edges[:-1][there], found['accuracy'][there], np.diff(edges)[there], align='edge', alpha=0.4)
        upper.plot(found['confidence'][there], found['accuracy'][there], 'o-', label='images of that confidence')
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel='accuracy', title=f'calibration error (ECE) {scores["ece"]:.3f}')
        upper.legend(loc='lower right')
        lower.bar(edges[:-1], found['count'], np.diff(edges), align='edge', alpha=0.4)
        lower.set(xlabel='confidence', ylabel='images')
        for axes in (upper, lower):
            axes.spines[['top', 'right']].set_visible(False)


def contact_sheet(path: Path, cells: list[tuple[Image.Image | None, str, str]], title: str, columns: int = 6) -> None:
    """Draw small images with a text below each: `cells` is [(image or None, text, colour)]."""
    columns = min(columns, len(cells))
    rows = math.ceil(len(cells) / columns)
    with drawn(path, 2 * columns, 2.5 * rows + 0.5) as figure:
        figure.suptitle(title)
        grid = figure.subplots(rows, columns, squeeze=False).flat
        for axes, (image, text, colour) in zip(grid, cells, strict=False):
            if image is not None:
                axes.imshow(image)
            axes.set_xlabel(printable(text, allowed='\n'), fontsize=8, color=colour)
        for axes in figure.axes:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
