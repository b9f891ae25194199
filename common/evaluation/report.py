"""What there is to say of a network on images whose classes are known: report.json, which the page is made from."""
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from common.data.folders import class_name
from common.evaluation.metrics import scores
from common.evaluation.predictor import Prediction
from common.evaluation.suspects import find_suspects

TYPICAL = 3         # images of each class that a person can compare others with
SHOWN = 24          # images in each list of a report: the most confident mistakes, the least confident hits
CURVE_POINTS = 200  # of the curve of answers
LARGE = 10 ** 7     # probabilities; of more, computing ROC AUC takes too long

COPIED_SCORES = ('acc1', 'acc1_interval', 'acc5', 'balanced_accuracy', 'macro_f1', 'ece', 'temperature',
                 'calibrated_ece', 'report')  # what a report takes from common.evaluation.metrics as it is


def build_report(scores: dict[str, Any], logits: torch.Tensor, targets: torch.Tensor, certain: torch.Tensor,
                 files: list[str], classes: list[str]) -> dict[str, Any]:
    """Return the content of report.json, plain values, on N images.

    `scores` are those of common.evaluation.metrics for them; calibrated logits (N, classes), targets (N,), certainty
    (N,) and `files` have a row for each image.
    """
    probabilities = logits.softmax(1).nan_to_num()  # a run that diverged gives NaN
    confidence, guess = probabilities.max(1)
    right = guess == targets

    def listed(chosen: torch.Tensor, descending: bool) -> list[dict[str, Any]]:
        order = confidence[chosen].argsort(descending=descending, stable=True)[:SHOWN]
        return [{'file': files[i], 'class': classes[targets[i]], 'named': classes[guess[i]],
                 'confidence': confidence[i].item()} for i in chosen[order].tolist()]

    report = {name: scores[name] for name in COPIED_SCORES}
    report['pictures'] = len(targets)
    report['confusion'] = confusion_counts(scores['confusion'], classes)
    report['per_class'] = per_class(probabilities, targets, classes)
    report['reliability'] = {name: values.tolist() for name, values in scores['reliability'].items()}
    report['answers'] = answers(certain, right)
    report['mistakes'] = listed((~right).nonzero()[:, 0], descending=True)
    report['doubtful'] = listed(right.nonzero()[:, 0], descending=False)
    report['suspects'] = [
        {'file': files[index], 'class': classes[targets[index]], 'perhaps': classes[other], 'score': score}
        for index, other, score in find_suspects(probabilities, targets)]
    report['typical'] = typical(confidence, guess.where(right, -1), files, classes)
    return report


def typical(confidence: torch.Tensor, guess: torch.Tensor, files: list[str], classes: list[str]
            ) -> dict[str, list[str]]:
    """Return {class: files of the TYPICAL images that are classified so, and rightly, with the highest confidence}.

    `guess` (N,) is the class of an image, or -1 where that is wrong; `confidence` is (N,).
    """
    found = {name: [] for name in classes}
    order = confidence.argsort(descending=True, stable=True)
    for index, named in zip(order.tolist(), guess[order].tolist(), strict=True):
        if named >= 0 and len(found[classes[named]]) < TYPICAL:
            found[classes[named]].append(files[index])
    return found


def confusion_counts(confusion: np.ndarray, classes: list[str]) -> dict[str, dict[str, int]]:
    """Return {true class: {predicted class: images}}, without zeros, from counts (classes, classes), rows: truth."""
    counts = {}
    for true_class, row in zip(classes, confusion, strict=True):
        counts[true_class] = {classes[column]: int(row[column]) for column in row.nonzero()[0]}
    return counts


def answers(certain: torch.Tensor, right: torch.Tensor) -> dict[str, list[float]]:
    """Return {'certainty', 'answered', 'accuracy'}: for at most CURVE_POINTS thresholds of the certainty (N,), the
    share of images that reach it and the accuracy of those, from 0 to 1.
    """
    order = certain.argsort(descending=True, stable=True)
    accuracy = right[order].double().cumsum(0) / torch.arange(1, len(order) + 1)
    evenly = np.linspace(0, len(order) - 1, min(CURVE_POINTS, len(order)))
    chosen = np.unique(evenly.round().astype(int))
    return {'certainty': certain[order][chosen].tolist(), 'answered': ((chosen + 1) / len(order)).tolist(),
            'accuracy': accuracy[chosen].tolist()}


def per_class(probabilities: torch.Tensor, targets: torch.Tensor, classes: list[str]) -> list[dict[str, Any]]:
    """Return [{'class', 'precision', 'recall', 'f1', 'roc_auc', 'pictures'}] from probabilities (N, classes) and
    targets (N,).

    Recall and F1 of a class without images are None. So is the ROC AUC, against all other classes, which is None for a
    class with all images and for LARGE sets, too.
    """
    from sklearn.metrics import precision_recall_fscore_support, roc_auc_score  # takes a second

    precision, recall, f1, count = precision_recall_fscore_support(
        targets, probabilities.argmax(1), labels=range(len(classes)), zero_division=0)
    rows = []
    for index, name in enumerate(classes):
        area = None
        if 0 < count[index] < len(targets) and probabilities.numel() <= LARGE:
            area = float(roc_auc_score(targets == index, probabilities[:, index]))
        rows.append({'class': name, 'precision': float(precision[index]),
                     'recall': float(recall[index]) if count[index] else None,
                     'f1': float(f1[index]) if count[index] else None, 'roc_auc': area, 'pictures': int(count[index])})
    return rows


# What is kept of any number of predictions while they pass

def table_row(prediction: Prediction, path: str, stamp: tuple[int, int]) -> dict[str, Any]:
    """Return the row of a prediction in predictions.jsonl.

    `path` is what tables call the image, `stamp` its (size in bytes, modification time in ns), by which a later run
    knows it again.
    """
    size, modified = stamp
    row = {'path': path, 'class': prediction.label, 'confidence': None, 'certainty': None, 'top5': [],
           'error': prediction.error, 'bytes': size, 'modified_ns': modified}
    if not prediction.error:
        row['confidence'] = round(prediction.confidence, 6)
        row['certainty'] = round(prediction.certainty, 6)
        row['top5'] = [{'class': name, 'confidence': round(probability, 6)} for name, probability in prediction.top]
    return row


Item = TypeVar('Item')


class Sample(Generic[Item]):
    """At least `most` items, or all of fewer, evenly over a stream of unknown length."""

    def __init__(self, most: int):
        self.most = most
        self.kept: list[Item] = []
        self.step = 1  # one item of so many is kept
        self.seen = 0

    def add(self, item: Item) -> None:
        """Take note of the next item of the stream."""
        if self.seen % self.step == 0:
            self.kept.append(item)
        self.seen += 1
        if len(self.kept) == 2 * self.most:
            self.kept = self.kept[::2]
            self.step *= 2

    def items(self) -> list[Item]:
        """Return `most` of the items, evenly, in their order."""
        count = min(self.most, len(self.kept))
        return [self.kept[index * len(self.kept) // count] for index in range(count)]


class Summary:
    """What the end of a run needs of all predictions: counts, a sample, and what scores are computed from.

    An image in a folder named like a class takes 4 bytes for each class. With `keep_names` the names of all readable
    images are kept too. With `is_split` the folders of the classes lie in train, val or test.
    """

    def __init__(self, classes: list[str], shown: int, keep_names: bool = False, is_split: bool = False):
        self.classes = classes
        self.keep_names = keep_names
        self.is_split = is_split
        self.count = 0
        self.unreadable = 0
        self.unknown = 0
        self.sample: Sample[dict[str, Any]] = Sample(shown)  # rows of the tables
        self.readable: list[str] = []       # names of images, with `keep_names`
        self.other_folders: set[str] = set()  # folders with images that are not named like a class
        self.names: list[str] = []          # the readable images of known class, and for each of them:
        self.targets: list[int] = []
        self.logits: list[torch.Tensor] = []
        self.certain: list[float] = []
        self._index = {name: index for index, name in enumerate(classes)}

    @property
    def classified(self) -> int:
        """Number of images that got a class."""
        return self.count - self.unreadable - self.unknown

    def true_class(self, name: str) -> str | None:
        """Return the class whose folder an image lies in, by its path below TEST_DIR; None for no such folder."""
        folder = self._folder(name)
        return folder if folder in self._index else None

    def _folder(self, name):
        """Return the name of the folder that stands for the class of an image, or None where there is none."""
        folders = name.split('/')[:-1]
        if self.is_split:
            folders = folders[1:]
        return class_name(folders[0]) if folders else None

    def add(self, prediction: Prediction, row: dict[str, Any]) -> None:
        """Take note of a prediction; `row` is its row in the tables."""
        self.count += 1
        self.sample.add(row)
        name = row['path']
        true_class = self.true_class(name)
        folder = self._folder(name)
        if true_class is None and folder is not None:
            self.other_folders.add(folder)
        if prediction.error:
            self.unreadable += 1
            return
        if prediction.is_unknown:
            self.unknown += 1
        if self.keep_names:
            self.readable.append(name)
        if true_class is not None:
            self.names.append(name)
            self.targets.append(self._index[true_class])
            self.logits.append(prediction.logits)
            self.certain.append(prediction.certainty)

    def scores(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return (scores of common.evaluation.metrics, the report on them) of the images of known class."""
        logits = torch.stack(self.logits)
        targets = torch.tensor(self.targets)
        found = scores(logits, targets, self.classes)
        return found, build_report(found, logits, targets, torch.tensor(self.certain), self.names, self.classes)

    def answered(self, unknown_below: float) -> tuple[float, float]:
        """Return (share of the images of known class that get an answer, share of those answers that are right)."""
        answered = torch.tensor(self.certain) >= unknown_below
        right = torch.stack(self.logits).argmax(1) == torch.tensor(self.targets)
        return answered.double().mean().item(), right[answered].double().mean().item()
