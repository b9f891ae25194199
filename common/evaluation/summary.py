"""What is kept of any number of predictions while they pass."""
from typing import Any, Generic, TypeVar

import torch

from common.evaluation.metrics import scores
from common.evaluation.predictor import UNKNOWN, Prediction
from common.evaluation.report import build_report

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
