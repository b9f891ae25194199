"""What a network gets right: ACC1 and ACC5 (timm), and per class what scikit-learn reports.

ACC1 is the share of images, in percent, whose most probable class is the right one; ACC5 the share whose right class is
among the five most probable. With fewer than six classes ACC5 is 100.
"""
import warnings

import torch
import torch.nn.functional as F
from timm.utils import accuracy

from common.evaluation.calibration import calibration_error, fit_temperature, reliability
from common.runtime.distributed import add_up


def scores(logits: torch.Tensor, targets: torch.Tensor, classes: list[str]) -> dict:
    """From logits (N, classes) and targets (N,): loss, acc1, its interval, acc5, balanced_accuracy (percent), ece, the
    temperature that would fit best, and ece with it (common/evaluation/calibration.py), report (scikit-learn's, as text
    and as a dict), and as arrays the confusion matrix (rows: truth) and the reliability."""
    from sklearn.metrics import balanced_accuracy_score, classification_report, confusion_matrix  # takes a second

    acc1, acc5 = accuracy(logits, targets, topk=(1, 5))
    truth, guess = targets.numpy(), logits.argmax(1).numpy()
    labels, temperature = list(range(len(classes))), fit_temperature(logits, targets)
    named = {'labels': labels, 'target_names': classes, 'zero_division': 0}
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='y_pred contains classes not in y_true')
        balanced = balanced_accuracy_score(truth, guess)
    return {'loss': F.cross_entropy(logits, targets).item(),
            'acc1': acc1.item(), 'acc1_interval': interval(acc1.item(), len(targets)),
            'acc5': acc5.item(), 'balanced_accuracy': 100 * float(balanced),
            'ece': calibration_error(logits, targets), 'temperature': temperature,
            'calibrated_ece': calibration_error(logits / temperature, targets),
            'report_text': classification_report(truth, guess, **named, digits=3),
            'report': classification_report(truth, guess, **named, output_dict=True),
            'confusion': confusion_matrix(truth, guess, labels=labels), 'reliability': reliability(logits, targets)}


def interval(acc1: float, count: int) -> tuple[float, float]:
    """Between which percentages the ACC1 on many such images would lie, with 95 % confidence (Wilson), if it is `acc1`
    on `count` of them.
    """
    from scipy.stats import binomtest  # takes half a second

    found = binomtest(round(acc1 / 100 * count), count).proportion_ci(method='wilson')
    return 100 * found.low, 100 * found.high


class BatchMeter:
    """Loss and accuracy over the batches of an update, on the device until they are read."""

    def __init__(self, smoothing: float):
        self.smoothing, self.rows = smoothing, []

    @torch.no_grad()
    def add(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor) -> None:
        """The mean loss of a batch, its logits (B, classes), labels (B,) and targets (B, classes); of one that several
        processes share, this one's part of the mean and its rows.
        """
        unmixed = targets.amax(1) >= 1 - self.smoothing  # mixed with another class a label says little
        correct = unmixed & (logits.argmax(1) == labels)
        self.rows.append(torch.stack([loss.detach(), correct.sum(), unmixed.sum()]))

    def read(self) -> tuple[float, int, int]:
        """(mean loss of the batches, correct images, images whose label is no mixture)."""
        loss, correct, unmixed = add_up(torch.stack(self.rows).double().sum(0)).tolist()
        return loss / len(self.rows), int(correct), int(unmixed)
