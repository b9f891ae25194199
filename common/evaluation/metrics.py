"""What a network gets right: ACC1 and ACC5 (timm), and per class what scikit-learn reports.

ACC1 is the share of images, in percent, whose most probable class is the right one; ACC5 the share whose right class is
among the five most probable. With fewer than six classes ACC5 is 100.
"""
import warnings

import torch
import torch.nn.functional as F
from timm.utils import accuracy

from common.runtime.distributed import add_up


def scores(logits: torch.Tensor, targets: torch.Tensor, classes: list[str]) -> dict:
    """Plain numbers from logits (N, classes) and targets (N,): loss, acc1, acc5, balanced_accuracy (percent),
    report (scikit-learn's, as text and as a dict) and the confusion matrix (an array, rows: truth)."""
    from sklearn.metrics import balanced_accuracy_score, classification_report, confusion_matrix  # takes a second

    acc1, acc5 = accuracy(logits, targets, topk=(1, 5))
    truth, guess = targets.numpy(), logits.argmax(1).numpy()
    labels = list(range(len(classes)))
    named = {'labels': labels, 'target_names': classes, 'zero_division': 0}
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='y_pred contains classes not in y_true')
        balanced = balanced_accuracy_score(truth, guess)
    return {'loss': F.cross_entropy(logits, targets).item(), 'acc1': acc1.item(), 'acc5': acc5.item(),
            'balanced_accuracy': 100 * float(balanced),
            'report_text': classification_report(truth, guess, **named, digits=3),
            'report': classification_report(truth, guess, **named, output_dict=True),
            'confusion': confusion_matrix(truth, guess, labels=labels)}


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
