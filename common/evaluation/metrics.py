"""What a network gets right: ACC1 and ACC5 (timm), scores per class (scikit-learn), and the worth of its confidence.

ACC1 is the share of images, in percent, whose most probable class is the right one; ACC5 the share whose right class is
among the five most probable. With fewer than six classes ACC5 is 100.
"""
import warnings

import torch
import torch.nn.functional as F
from timm.utils import accuracy

from common.evaluation.calibration import calibration_error, fit_temperature, reliability


def scores(logits: torch.Tensor, targets: torch.Tensor, classes: list[str]) -> dict:
    """Return what logits (N, classes) get right of targets (N,): loss, acc1, its interval, acc5, balanced_accuracy (all
    in percent), macro_f1, ece, the temperature that would fit best and the ece with it, the report of scikit-learn as
    text and as a dict, and as arrays the confusion matrix (rows: truth) and the reliability.
    """
    from sklearn.metrics import balanced_accuracy_score, classification_report, confusion_matrix, f1_score  # a second

    acc1, acc5 = accuracy(logits, targets, topk=(1, 5))
    truth = targets.numpy()
    guess = logits.argmax(1).numpy()
    labels = list(range(len(classes)))
    temperature = fit_temperature(logits, targets)
    named = {'labels': labels, 'target_names': classes, 'zero_division': 0}
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='y_pred contains classes not in y_true')
        balanced = balanced_accuracy_score(truth, guess)
    return {
        'loss': F.cross_entropy(logits, targets).item(),
        'acc1': acc1.item(),
        'acc1_interval': interval(acc1.item(), len(targets)),
        'acc5': acc5.item(),
        'balanced_accuracy': 100 * float(balanced),
        'macro_f1': float(f1_score(truth, guess, labels=labels, average='macro', zero_division=0)),
        'ece': calibration_error(logits, targets),
        'temperature': temperature,
        'calibrated_ece': calibration_error(logits / temperature, targets),
        'report_text': classification_report(truth, guess, **named, digits=3),
        'report': classification_report(truth, guess, **named, output_dict=True),
        'confusion': confusion_matrix(truth, guess, labels=labels),
        'reliability': reliability(logits, targets)}


def interval(acc1: float, count: int) -> tuple[float, float]:
    """Return the percentages between which the ACC1 on many such images would lie, with 95 % confidence (Wilson), if it
    is `acc1` on `count` of them.
    """
    from scipy.stats import binomtest  # takes half a second

    found = binomtest(min(count, round(acc1 / 100 * count)), count).proportion_ci(method='wilson')
    return 100 * found.low, 100 * found.high
