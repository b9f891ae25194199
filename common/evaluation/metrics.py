"""What a network gets right: ACC1 and ACC5 (timm), scores per class (scikit-learn), and the worth of its confidence.

ACC1 is the share of images, in percent, whose most probable class is the right one; ACC5 the share whose right class is
among the five most probable. With fewer than six classes ACC5 is 100.

Balanced accuracy, macro F1 and the averages of the report are those of the classes that have images. The recall of
others is unknown, and a 0 in its place would lower the mean however good the network is. An image that is taken for one
of them still counts: it lowers the recall and the F1 of its own class.
"""
import numpy as np
import torch
import torch.nn.functional as F
from timm.utils import accuracy

from common.evaluation.calibration import calibration_error, fit_temperature, reliability


def scores(logits: torch.Tensor, targets: torch.Tensor, classes: list[str]) -> dict:
    """Return what logits (N, classes) get right of targets (N,): loss, acc1, its interval, acc5, balanced_accuracy (all
    in percent), macro_f1, ece, the temperature that would fit best and the ece with it, the report of scikit-learn on
    the classes that have images, as text and as a dict, and as arrays the confusion matrix (rows: truth) and the
    reliability.
    """
    from sklearn.metrics import classification_report, confusion_matrix  # takes a second

    acc1, acc5 = accuracy(logits, targets, topk=(1, 5))
    truth = targets.numpy()
    guess = logits.argmax(1).numpy()
    temperature = fit_temperature(logits, targets)
    there = np.unique(truth)
    named = {'labels': there, 'target_names': [classes[index] for index in there], 'zero_division': 0}
    report = classification_report(truth, guess, **named, output_dict=True)
    text = classification_report(truth, guess, **named, digits=3)
    if len(there) < len(classes):
        text += f'\n{len(classes) - len(there)} of {len(classes)} classes have no images here\n'
    return {
        'loss': F.cross_entropy(logits, targets).item(),
        'acc1': acc1.item(),
        'acc1_interval': interval(acc1.item(), len(targets)),
        'acc5': acc5.item(),
        'balanced_accuracy': 100 * report['macro avg']['recall'],
        'macro_f1': report['macro avg']['f1-score'],
        'ece': calibration_error(logits, targets),
        'temperature': temperature,
        'calibrated_ece': calibration_error(logits / temperature, targets),
        'report_text': text,
        'report': report,
        'confusion': confusion_matrix(truth, guess, labels=range(len(classes))),
        'reliability': reliability(logits, targets)}


def interval(acc1: float, count: int) -> tuple[float, float]:
    """Return the percentages between which the ACC1 on many such images would lie, with 95 % confidence (Wilson), if it
    is `acc1` on `count` of them.
    """
    from scipy.stats import binomtest  # takes half a second

    found = binomtest(min(count, round(acc1 / 100 * count)), count).proportion_ci(method='wilson')
    return 100 * found.low, 100 * found.high
