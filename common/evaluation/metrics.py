"""What a network gets right: ACC1 and ACC5 (timm), and per class what scikit-learn reports.

ACC1 is the share of pictures, in percent, whose most probable class is the right one; ACC5 the share whose right class
is among the five most probable. With fewer than six classes ACC5 is 100.
"""
import warnings

import torch.nn.functional as F
from timm.utils import accuracy


def scores(logits, targets, classes):
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
