"""What a network gets right: ACC1 and ACC5 (timm), scores per class (scikit-learn), and the worth of its confidence.

ACC1 is the share of images, in percent, whose most probable class is the right one; ACC5 the share whose right class is
among the five most probable. With fewer than six classes ACC5 is 100.

Balanced accuracy, macro F1 and the macro average of the report are means over the classes that have images. A class
without images has no recall, and as a 0 it would lower the mean however good the network is. An image that is wrongly
predicted as such a class still counts: it lowers the recall and the F1 of its own class.
"""
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.utils import accuracy

from common.evaluation.calibration import calibration_error, fit_temperature, reliability
from common.runtime.console import text_width

CLASS_SCORES = ('precision', 'recall', 'f1-score', 'support')  # as scikit-learn calls them


def scores(logits: torch.Tensor, targets: torch.Tensor, classes: list[str]) -> dict:
    """Return what logits (N, classes) get right of targets (N,): loss, acc1, its interval, acc5, balanced_accuracy (all
    in percent), macro_f1, ece, the temperature that would fit best and the ece with it, the report of scikit-learn as
    text and as a dict, and as arrays the confusion matrix (rows: truth) and the reliability.
    """
    from sklearn.metrics import confusion_matrix  # takes a second

    acc1, acc5 = accuracy(logits, targets, topk=(1, 5))
    truth = targets.numpy()
    guess = logits.argmax(1).numpy()
    temperature = fit_temperature(logits, targets)
    rows = class_scores(truth, guess, len(classes))
    averages = average_scores(truth, guess)
    return {
        'loss': F.cross_entropy(logits, targets).item(),
        'acc1': acc1.item(),
        'acc1_interval': interval(acc1.item(), len(targets)),
        'acc5': acc5.item(),
        'balanced_accuracy': 100 * averages['macro avg']['recall'],
        'macro_f1': averages['macro avg']['f1-score'],
        'ece': calibration_error(logits, targets),
        'temperature': temperature,
        'calibrated_ece': calibration_error(logits / temperature, targets),
        'report_text': report_text(classes, rows, averages),
        'report': {**dict(zip(classes, rows, strict=True)), **averages},
        'confusion': confusion_matrix(truth, guess, labels=range(len(classes))),
        'reliability': reliability(logits, targets)}


def class_scores(truth: np.ndarray, guess: np.ndarray, classes: int) -> list[dict[str, Any]]:
    """Return the CLASS_SCORES of each class, from true and predicted classes (N,).

    A class without images has no recall and no F1: both are None. Its precision is 0 if images are predicted as it,
    because all of these predictions are wrong; otherwise it is None, too.
    """
    from sklearn.metrics import precision_recall_fscore_support  # takes a second

    columns = precision_recall_fscore_support(truth, guess, labels=range(classes), zero_division=0)
    predicted = np.bincount(guess, minlength=classes)
    rows = []
    for index, values in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        row = dict(zip(CLASS_SCORES, values, strict=True))
        if not row['support']:
            row['recall'] = None
            row['f1-score'] = None
            if not predicted[index]:
                row['precision'] = None
        rows.append(row)
    return rows


def average_scores(truth: np.ndarray, guess: np.ndarray) -> dict[str, Any]:
    """Return the accuracy and the averages of scikit-learn's report, from true and predicted classes (N,)."""
    from sklearn.metrics import precision_recall_fscore_support  # takes a second

    averages: dict[str, Any] = {'accuracy': float((truth == guess).mean())}
    for average in ('macro', 'weighted'):
        values = precision_recall_fscore_support(
            truth, guess, labels=np.unique(truth), average=average, zero_division=0)[:3]
        averages[f'{average} avg'] = dict(zip(CLASS_SCORES, [*map(float, values), len(truth)], strict=True))
    return averages


def report_text(classes: list[str], rows: list[dict[str, Any]], averages: dict[str, Any]) -> str:
    """Return class_scores and average_scores as a table like scikit-learn's, with - for what a class does not have."""
    width = max(len('weighted avg'), *map(text_width, classes))

    def line(name: str, cells: Iterable[Any]) -> str:
        return ' ' * (width - text_width(name)) + name + ' ' + ''.join(f' {_cell_text(cell):>9}' for cell in cells)

    lines = [line('', CLASS_SCORES), '']
    for name, row in zip(classes, rows, strict=True):
        lines.append(line(name, row.values()))
    lines += ['', line('accuracy', ['', '', averages['accuracy'], averages['macro avg']['support']])]
    for name in ('macro avg', 'weighted avg'):
        lines.append(line(name, averages[name].values()))
    missing = sum(row['support'] == 0 for row in rows)
    if missing:
        lines += ['', f'{missing} of {len(classes)} classes have no images here and count in no average']
    return '\n'.join(lines) + '\n'


def _cell_text(value):
    """Return a cell of the table."""
    if value is None:
        return '-'
    return f'{value:.3f}' if isinstance(value, float) else str(value)


def interval(acc1: float, count: int) -> tuple[float, float]:
    """Return the percentages between which the ACC1 on many such images would lie, with 95 % confidence (Wilson), if it
    is `acc1` on `count` of them.
    """
    from scipy.stats import binomtest  # takes half a second

    found = binomtest(min(count, round(acc1 / 100 * count)), count).proportion_ci(method='wilson')
    return 100 * found.low, 100 * found.high
