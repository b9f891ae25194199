"""What there is to say of a network on pictures whose classes are known: report.json, which the page is made from."""
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from common.evaluation.metrics import scores
from common.evaluation.predictor import UNKNOWN, Prediction
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


# What is kept of any number of predictions while they pass

Item = TypeVar('Item')


class Sample(Generic[Item]):
    """At least `most` items, or all of fewer, evenly over a stream of unknown length."""

    def __init__(self, most: int):
        self.most, self.kept, self.step, self.seen = most, [], 1, 0

    def add(self, item: Item) -> None:
        if self.seen % self.step == 0:
            self.kept.append(item)
        self.seen += 1
        if len(self.kept) == 2 * self.most:
            self.kept, self.step = self.kept[::2], 2 * self.step

    def items(self) -> list[Item]:
        """`most` of them, evenly, in their order."""
        count = min(self.most, len(self.kept))
        return [self.kept[index * len(self.kept) // count] for index in range(count)]


class Summary:
    """Counts, a sample, and of pictures in folders named like classes what scores are computed from: 4 bytes for each
    class of each such picture. With `keep_names` also the names of all readable pictures.
    """

    def __init__(self, classes: list[str], shown: int, keep_names: bool = False):
        self.keep_names, self.readable = keep_names, []
        self.classes, self.index = classes, {name: index for index, name in enumerate(classes)}
        self.count = self.unreadable = self.unknown = 0
        self.sample: Sample[dict[str, Any]] = Sample(shown)
        self.names, self.targets, self.logits, self.certain = [], [], [], []
        self.other_folders: set[str] = set()

    def true_class(self, name: str) -> str | None:
        """The class whose folder a picture lies in, by its path below TEST_DIR; None where it is in no such folder."""
        folder, slash, _ = name.partition('/')
        return folder if slash and folder in self.index else None

    def add(self, prediction: Prediction, row: dict[str, Any]) -> None:
        """`row` is its row in the tables."""
        name, truth = row['path'], self.true_class(row['path'])
        self.count += 1
        self.unreadable += bool(prediction.error)
        self.unknown += prediction.label == UNKNOWN
        self.sample.add(row)
        if self.keep_names and not prediction.error:
            self.readable.append(name)
        if truth is None:
            self.other_folders |= {name.partition('/')[0]} if '/' in name else set()
        elif not prediction.error:
            self.names.append(name)
            self.targets.append(self.index[truth])
            self.logits.append(prediction.logits)
            self.certain.append(prediction.certainty)

    def scores(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """(scores of common.evaluation.metrics, report of common.evaluation.report) of the pictures of known class."""
        logits, targets = torch.stack(self.logits), torch.tensor(self.targets)
        found = scores(logits, targets, self.classes)
        return found, build_report(found, logits, targets, torch.tensor(self.certain), self.names, self.classes)

    def answered(self, unknown_below: float) -> tuple[float, float]:
        """(share of the pictures of known class that are named, share of those that are named rightly)."""
        answered = torch.tensor(self.certain) >= unknown_below
        right = torch.stack(self.logits).argmax(1) == torch.tensor(self.targets)
        return answered.double().mean().item(), right[answered].double().mean().item()
