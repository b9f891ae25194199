"""What there is to say of a network on pictures whose classes are known: report.json, which the page is made from."""
from typing import Any

import numpy as np
import torch

from common.evaluation.suspects import find_suspects

SHOWN = 24    # pictures of each kind
POINTS = 200  # of the curve of answers
LARGE = 10 ** 7  # logits, of which ROC AUC is not worth its time

NUMBERS = ('acc1', 'acc1_interval', 'acc5', 'balanced_accuracy', 'macro_f1', 'ece', 'temperature',
           'calibrated_ece', 'report')


def build_report(scores: dict[str, Any], logits: torch.Tensor, targets: torch.Tensor, certain: torch.Tensor,
                 files: list[str], classes: list[str]) -> dict[str, Any]:
    """Plain values. `scores` are those of common.evaluation.metrics; calibrated logits (N, classes), targets (N,),
    certainty (N,) and `files` are of the same N pictures.
    """
    shares = logits.softmax(1).nan_to_num()  # a run that diverged gives NaN
    confidence, guess = shares.max(1)
    right = guess == targets

    def listed(chosen: torch.Tensor, descending: bool) -> list[dict[str, Any]]:
        order = confidence[chosen].argsort(descending=descending, stable=True)[:SHOWN]
        return [{'file': files[i], 'class': classes[targets[i]], 'named': classes[guess[i]],
                 'confidence': confidence[i].item()} for i in chosen[order].tolist()]

    suspects = [{'file': files[index], 'class': classes[targets[index]], 'perhaps': classes[other], 'score': score}
                for index, other, score in find_suspects(shares, targets)]
    confusion = {name: {classes[column]: int(row[column]) for column in row.nonzero()[0]}
                 for name, row in zip(classes, scores['confusion'], strict=True)}  # true class: {named class: pictures}
    return {**{name: scores[name] for name in NUMBERS}, 'pictures': len(targets), 'confusion': confusion,
            'per_class': per_class(shares, targets, classes),
            'reliability': {name: values.tolist() for name, values in scores['reliability'].items()},
            'answers': answers(certain, right), 'mistakes': listed((~right).nonzero()[:, 0], True),
            'doubtful': listed(right.nonzero()[:, 0], False), 'suspects': suspects}


def answers(certain: torch.Tensor, right: torch.Tensor) -> dict[str, list[float]]:
    """{'certainty', 'answered', 'accuracy'}: for at most POINTS thresholds of the certainty (N,), the share of pictures
    that reach it and the accuracy of those, from 0 to 1.
    """
    order = certain.argsort(descending=True, stable=True)
    accuracy = right[order].double().cumsum(0) / torch.arange(1, len(order) + 1)
    chosen = np.unique(np.linspace(0, len(order) - 1, min(POINTS, len(order))).round().astype(int))
    return {'certainty': certain[order][chosen].tolist(), 'answered': ((chosen + 1) / len(order)).tolist(),
            'accuracy': accuracy[chosen].tolist()}


def per_class(shares: torch.Tensor, targets: torch.Tensor, classes: list[str]) -> list[dict[str, Any]]:
    """[{'class', 'precision', 'recall', 'f1', 'roc_auc', 'pictures'}] from probabilities (N, classes) and targets (N,).

    The ROC AUC, against all other classes, is None for a class with no picture or with all, and for LARGE sets.
    """
    from sklearn.metrics import precision_recall_fscore_support, roc_auc_score  # takes a second

    found = precision_recall_fscore_support(targets, shares.argmax(1), labels=range(len(classes)), zero_division=0)
    rows = []
    for index, (precision, recall, f1, count) in enumerate(zip(*(values.tolist() for values in found), strict=True)):
        known = 0 < count < len(targets) and shares.numel() <= LARGE
        area = float(roc_auc_score(targets == index, shares[:, index])) if known else None
        rows.append({'class': classes[index], 'precision': precision, 'recall': recall, 'f1': f1, 'roc_auc': area,
                     'pictures': count})
    return rows
