"""Which images a label would teach most: those that a network is unsure of, and that differ from each other."""
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from common.evaluation.predictor import Prediction
from common.evaluation.report import TYPICAL

COMPARED = 1000  # images that are chosen by how they differ; of more that are wanted the least certain follow
_POOL = 4        # times as many of the least certain images take part


@dataclass
class Unlabelled:
    """An image without a label, as a network sees it."""
    name: str
    certainty: float
    confidence: float
    probable: list[str]     # the most probable classes, the first one with `confidence`
    features: torch.Tensor  # (dim,), float16


class Pool:
    """The least certain of any number of images, from which `most` are chosen; and the most certain of each class."""

    def __init__(self, most: int):
        self.most = most
        self.room = max(most, _POOL * min(most, COMPARED))
        self.kept: list[Unlabelled] = []
        self.certain: dict[str, list[tuple[float, str]]] = {}  # {class: the TYPICAL most certain, (certainty, name)}

    @property
    def typical(self) -> dict[str, list[str]]:
        """{class: names of the images that are most certainly of it}."""
        return {label: [name for _, name in found] for label, found in self.certain.items()}

    def add(self, name: str, prediction: Prediction) -> None:
        """Take note of an image. Without features of the network its logits stand for them."""
        features = prediction.logits if prediction.features is None else prediction.features
        probable = [label for label, _ in prediction.top]
        self.kept.append(Unlabelled(name, prediction.certainty, prediction.confidence, probable, features.half()))
        best = self.certain.setdefault(probable[0], [])
        best.append((prediction.certainty, name))
        best.sort(key=lambda found: -found[0])
        del best[TYPICAL:]
        if len(self.kept) >= 2 * self.room:
            self.prune()

    def prune(self) -> None:
        """Keep the least certain images only."""
        self.kept.sort(key=lambda found: found.certainty)
        del self.kept[self.room:]

    def most_valuable(self) -> list[Unlabelled]:
        """Return the images that a label would teach most, in their order."""
        self.prune()
        if not self.kept:
            return []
        certainty = torch.tensor([found.certainty for found in self.kept])
        features = torch.stack([found.features for found in self.kept]).float()
        order = teaching_order(certainty, features, min(self.most, COMPARED))
        others = sorted(set(range(len(self.kept))) - set(order))  # the least certain first
        return [self.kept[place] for place in [*order, *others][:self.most]]


def teaching_order(certainty: torch.Tensor, features: torch.Tensor, most: int) -> list[int]:
    """Return the places of at most `most` images, so that each is uncertain and unlike all those before it.

    Each time it is the image with the largest product of its uncertainty, 1 less `certainty` (N,), and the distance to
    the nearest one before it: half of 1 less the cosine between their `features` (N, dim), from which the mean is
    taken. Uncertainty alone would choose many images of one kind.
    """
    directions = normalize(features - features.mean(0))
    uncertainty = 1 - certainty
    distance = torch.ones(len(certainty))
    is_chosen = torch.zeros(len(certainty), dtype=torch.bool)
    order = []
    for _ in range(min(most, len(certainty))):
        value = uncertainty * distance
        value[is_chosen] = -1.
        chosen = value.argmax().item()
        is_chosen[chosen] = True
        order.append(chosen)
        distance = distance.minimum((1 - directions @ directions[chosen]) / 2)
    return order
