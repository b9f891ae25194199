"""What people look at: curves, the report per class, the confusion matrix, a contact sheet."""
import math
import warnings

import numpy as np

from common.runtime.console import printable
from common.runtime.files import replacing

_CJK = {'Noto Sans CJK SC', 'Noto Sans CJK JP', 'Source Han Sans SC', 'Microsoft YaHei', 'PingFang SC', 'SimHei',
        'Hiragino Sans GB', 'WenQuanYi Micro Hei', 'WenQuanYi Zen Hei'}  # class names may be Chinese


def new_figure(width, height):
    """An empty figure of so many inches. Here matplotlib is imported: a run's first step need not wait for it."""
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.figure import Figure

    matplotlib.rcParams['font.family'] = ['DejaVu Sans', *sorted(_CJK.intersection(font_manager.get_font_names()))]
    matplotlib.rcParams['text.parse_math'] = False  # class names may hold a $
    warnings.filterwarnings('ignore', message='Glyph .* missing from font')  # or an emoji
    return Figure(figsize=(width, height), dpi=110, layout='constrained')


def plot_curves(path, rows, curves, ylabel, best=None):
    """Draw columns of the log over the epochs: `curves` is {column: legend}, `best` (epoch, value, text) a mark."""
    figure = new_figure(7, 4.2)
    axes = figure.add_subplot()
    for column, legend in curves.items():
        points = [(row['epoch'], row[column]) for row in rows if row[column] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=legend, marker='.' if len(points) < 40 else None)
    if best:
        axes.plot(*best[:2], 'k*', markersize=10, label=best[2])
    axes.set(xlabel='epoch', ylabel=ylabel)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    if len(curves) > 1 or best:
        axes.legend(frameon=False)
    with replacing(path) as aside:
        figure.savefig(aside, format='png')


def plot_confusion(path, counts, classes, title):
    """Draw a confusion matrix, rows in percent of the class, counts in the cells when there is room for them."""
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(20, 3.5 + 0.45 * len(classes))
    figure = new_figure(side + 1, side)
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap='Blues', vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.7, label='share of the true class')
    if len(classes) <= 60:
        classes = [printable(name) for name in classes]
        axes.set_xticks(range(len(classes)), classes, rotation=45, ha='right', rotation_mode='anchor')
        axes.set_yticks(range(len(classes)), classes)
    if len(classes) <= 30:
        for row, column in zip(*counts.nonzero(), strict=True):
            axes.text(column, row, counts[row, column], ha='center', va='center', fontsize=8,
                      color='white' if share[row, column] > 0.5 else 'black')
    axes.set(xlabel='predicted', ylabel='true', title=title)
    with replacing(path) as aside:
        figure.savefig(aside, format='png')


def plot_training(folder, history, best):
    """loss.png, acc.png and lr.png from the rows of the log, the best epoch marked."""
    star = best['epoch'], best['acc1'], f'best: {best["acc1"]:.1f} % ({best["weights"]} weights)'
    losses = {'train_loss': 'training (smoothed labels)', 'raw_loss': 'validation', 'ema_loss': 'validation (EMA)'}
    accs = {'train_acc1': 'training (augmented)', 'raw_acc1': 'validation', 'ema_acc1': 'validation (EMA)'}
    plot_curves(folder / 'loss.png', history, losses, 'loss')
    plot_curves(folder / 'acc.png', history, accs, 'ACC1, %', star)
    plot_curves(folder / 'lr.png', history, {'lr': 'learning rate'}, "learning rate at the epoch's end")


def contact_sheet(path, cells, title, columns=6):
    """Draw small pictures with a text below each: `cells` is [(PIL image or None, text, colour)]."""
    columns = min(columns, len(cells))
    rows = math.ceil(len(cells) / columns)
    figure = new_figure(2 * columns, 2.5 * rows + 0.5)
    figure.suptitle(title)
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (image, text, colour) in zip(grid, cells, strict=False):
        if image is not None:
            axes.imshow(image)
        axes.set_xlabel(printable(text, keep='\n'), fontsize=8, color=colour)
    for axes in figure.axes:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    with replacing(path) as aside:
        figure.savefig(aside, format='png')
