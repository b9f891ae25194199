"""Plots as PNG files: curves, the confusion matrix, calibration, the contact sheet.

Whatever goes wrong in drawing is a UserError: a plot that fails must not end a run.
"""
import math
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from common.reporting.tables import headline, short_labels
from common.runtime.console import broken, printable, shortened, text_width
from common.runtime.errors import UserError
from common.runtime.files import replacing

_NAMED_CLASSES = 130    # up to so many, a confusion matrix has names; those of more would be too small to read
_LONGEST_NAME = 40      # columns of a class's name beside a confusion matrix
_CELL = 0.45            # inches of a cell of the confusion matrix
_SMALLEST_MATRIX = 2.5  # inches of its side
_LARGEST_MATRIX = 18
_NAME_POINTS = 10       # size of the names beside it, where there is room
_COUNT_POINTS = 8       # size of the counts in its cells, where there is room
_LEAST_POINTS = 5       # counts that would be smaller are left out
_MOST_COUNTS = 2000     # more of them are left out, too: they would take seconds to draw
_CHARACTER = 0.09       # inches of a character of a name of _NAME_POINTS, and of a title
_TITLE_CHARACTER = 0.11
_CELL_SIDE = 256        # pixels of the longer side of an image on the contact sheet
_CELL_COLUMNS = 24      # columns of a line below it
_CELL_LINE = 0.14       # inches of a line
_CELL_LONGEST = 270     # columns that are not cut: the name of a folder has at most 255 bytes
_CJK = {'Noto Sans CJK SC', 'Noto Sans CJK JP', 'Source Han Sans SC', 'Microsoft YaHei', 'PingFang SC', 'SimHei',
        'Hiragino Sans GB', 'WenQuanYi Micro Hei', 'WenQuanYi Zen Hei'}  # class names may be Chinese


def import_matplotlib() -> ModuleType:
    """Return the module matplotlib.

    A notebook sets MPLBACKEND for the programs that it starts as well. In their environment its backend may be missing,
    and then matplotlib cannot be imported unless the variable is hidden. Otherwise the backend is set as usual.
    """
    if 'matplotlib' in sys.modules:
        return sys.modules['matplotlib']
    backend = os.environ.pop('MPLBACKEND', None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ['MPLBACKEND'] = backend
    if backend:
        with suppress(ValueError):  # it is missing
            matplotlib.rcParams['backend'] = backend
    return matplotlib


@contextmanager
def drawn(path: Path, width: float, height: float) -> Iterator:
    """Yield an empty matplotlib figure of so many inches, which is written to `path` at the end. Raises UserError.

    It is drawn with Agg in matplotlib's own style, whatever a user has set, and leaves those settings as they are.
    matplotlib is imported here, so that a run's first update does not wait for it.
    """
    try:
        import_matplotlib()
        from matplotlib import font_manager, style
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        fonts = ['DejaVu Sans', *sorted(_CJK.intersection(font_manager.get_font_names()))]
        settings = {'font.family': fonts, 'text.parse_math': False}  # class names may hold a $
        with style.context(['default', settings]), warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='Glyph .* missing from font')  # such as an emoji
            figure = Figure(figsize=(width, height), dpi=110, layout='constrained')
            FigureCanvasAgg(figure)
            yield figure
            with replacing(path) as aside:
                figure.savefig(aside, format='png')
    except UserError:
        raise
    except Exception as error:  # matplotlib's errors are of a dozen types
        raise UserError(f'{path} could not be drawn ({type(error).__name__}: {error})') from error


def plot_training(folder: Path, history: list[dict[str, Any]], best: dict[str, Any]) -> None:
    """Draw loss.png, acc.png and lr.png from the rows of the log, the best epoch marked. Raises UserError."""
    losses = {'train_loss': 'training (smoothed labels)', 'raw_loss': 'validation', 'ema_loss': 'validation (EMA)'}
    accuracies = {'train_acc1': 'training (augmented)', 'raw_acc1': 'validation', 'ema_acc1': 'validation (EMA)'}
    star = Star(best['epoch'], best['acc1'], f'best: {best["acc1"]:.1f} % ({best["weights"]} weights)')
    plot_curves(folder / 'loss.png', history, losses, 'loss')
    plot_curves(folder / 'acc.png', history, accuracies, 'ACC1, %', star)
    plot_curves(folder / 'lr.png', history, {'lr': 'learning rate'}, "learning rate at the epoch's end")


class Star(NamedTuple):
    """A point of a curve that is marked."""
    epoch: int
    value: float
    legend: str


def plot_curves(path: Path, rows: list[dict[str, Any]], curves: dict[str, str], ylabel: str,
                star: Star | None = None) -> None:
    """Draw columns of the log over the epochs: `curves` is {column: legend}. Raises UserError."""
    with drawn(path, 7, 4.2) as figure:
        axes = figure.add_subplot()
        for column, legend in curves.items():
            drawn_rows = [row for row in rows if row[column] is not None]
            if drawn_rows:
                epochs = [row['epoch'] for row in drawn_rows]
                values = [row[column] for row in drawn_rows]
                axes.plot(epochs, values, label=legend, marker='.' if len(epochs) < 40 else None)
        if star:
            axes.plot(star.epoch, star.value, 'k*', markersize=10, label=star.legend)
        axes.set(xlabel='epoch', ylabel=ylabel)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
        if len(curves) > 1 or star:
            axes.legend(frameon=False)


def plot_confusion(path: Path, scores: dict[str, Any], classes: list[str]) -> None:
    """Draw the confusion matrix, rows as shares of the class, counts in the cells where they fit. Raises UserError."""
    counts = scores['confusion']  # (classes, classes), rows: truth
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = short_labels(classes, _LONGEST_NAME) if len(classes) <= _NAMED_CLASSES else []
    side = min(_LARGEST_MATRIX, max(_SMALLEST_MATRIX, _CELL * len(classes)))
    cell = 72 * side / len(classes)  # points
    name_points = min(_NAME_POINTS, 0.7 * cell)  # lines of names that are slanted lie closer together than the cells
    longest = max(map(text_width, names), default=4)
    beside = _CHARACTER * name_points / _NAME_POINTS * longest  # inches of the names, which are slanted below
    width = side + beside + 2
    unbroken = headline(scores).replace(' %', '\N{NO-BREAK SPACE}%')
    title = textwrap.fill(unbroken, int(width / _TITLE_CHARACTER))
    with drawn(path, width, side + 0.75 * beside + 1 + 0.2 * title.count('\n')) as figure:
        figure.suptitle(title)
        axes = figure.add_subplot()
        matrix = axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
        figure.colorbar(matrix, ax=axes, shrink=0.7, label='share of the class')
        numbered = '' if names else ' (place of the class in class.json, counted from 0)'
        axes.set(xlabel=f'predicted{numbered}', ylabel=f'true{numbered}')
        if names:
            axes.set_xticks(range(len(names)), names, fontsize=name_points, rotation=45, ha='right',
                            rotation_mode='anchor')
            axes.set_yticks(range(len(names)), names, fontsize=name_points)
        digits = len(str(counts.max()))
        count_points = min(_COUNT_POINTS, 0.7 * cell, 1.4 * cell / digits)  # a digit is 0.64 as wide as high
        if count_points >= _LEAST_POINTS and np.count_nonzero(counts) <= _MOST_COUNTS:
            for row, column in zip(*counts.nonzero(), strict=True):
                text = axes.text(column, row, counts[row, column], ha='center', va='center', fontsize=count_points,
                                 color='white' if shares[row, column] > 0.5 else 'black')
                text.set_in_layout(False)  # it lies inside; measuring all of them takes time


def plot_reliability(path: Path, scores: dict[str, Any]) -> None:
    """Draw the accuracy of images over their confidence, on the diagonal where both agree, and how many images have
    each confidence. Raises UserError.
    """
    found = scores['reliability']
    edges = np.linspace(0, 1, len(found['count']) + 1)
    left = edges[:-1]
    widths = np.diff(edges)
    filled = found['count'] > 0
    with drawn(path, 5, 5.5) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color='grey', linestyle='--', linewidth=1, label='confidence = accuracy')
        upper.bar(left[filled], found['accuracy'][filled], widths[filled], align='edge', alpha=0.4)
        upper.plot(found['confidence'][filled], found['accuracy'][filled], 'o-', label='images of that confidence')
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel='accuracy', title=f'calibration error (ECE) {scores["ece"]:.3f}')
        upper.legend(loc='lower right')
        lower.bar(left, found['count'], widths, align='edge', alpha=0.4)
        lower.set(xlabel='confidence', ylabel='images')
        for axes in (upper, lower):
            axes.spines[['top', 'right']].set_visible(False)


# The contact sheet of test.py

class Cell(NamedTuple):
    """An image on the contact sheet, and the text below it."""
    image: Image.Image | None  # None leaves the place empty
    text: str                  # lines, printable
    colour: str


def prediction_cell(row: dict[str, Any], true_class: str | None, open_image: Callable[[str], Image.Image]) -> Cell:
    """Return the cell of a row of the tables: green is right, red is wrong, black is of unknown class.

    `open_image` takes the row's path.
    """
    if row['error']:
        return Cell(None, f'{printable(row["path"][-24:])}\nunreadable', 'black')
    try:
        image = open_image(row['path'])
    except UserError as error:  # it was readable a moment ago
        return Cell(None, printable(str(error)[-24:]), 'black')
    image.thumbnail((_CELL_SIDE, _CELL_SIDE))
    text = printable(f'{row["class"]} {row["confidence"]:.0%}')
    if true_class is None:
        return Cell(image, text, 'black')
    if row['class'] == true_class:
        return Cell(image, text, 'green')
    return Cell(image, f'{text}\nis {printable(true_class)}', 'red')


def contact_sheet(path: Path, cells: list[Cell], title: str, columns: int = 6) -> None:
    """Draw small images with a text below each. Raises UserError.

    Long lines are broken, not cut: names of classes often differ in their middle alone.
    """
    texts = []
    for cell in cells:
        lines = [shortened(line, _CELL_LONGEST) for line in cell.text.split('\n')]
        texts.append([part for line in lines for part in broken(line, _CELL_COLUMNS)])
    columns = min(columns, len(cells))
    rows = math.ceil(len(cells) / columns)
    with drawn(path, 2 * columns, (2.2 + _CELL_LINE * max(map(len, texts))) * rows + 0.5) as figure:
        figure.suptitle(title)
        grid = figure.subplots(rows, columns, squeeze=False).flat
        for axes, cell, lines in zip(grid, cells, texts, strict=False):
            if cell.image is not None:
                axes.imshow(cell.image)
            axes.set_xlabel('\n'.join(lines), fontsize=8, color=cell.colour)
        for axes in figure.axes:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
