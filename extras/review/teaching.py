"""Which images a label would teach most: those that lie between two classes for a network, a few of each kind.

They are chosen as a diverse batch (Zhdanov, arXiv:1901.05954): the features of the most doubtful images are divided
into as many clusters as images are wanted, and the image in the middle of each is taken.
"""
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import normalize

from common.evaluation.predictor import Prediction
from common.evaluation.report import TYPICAL

COMPARED = 1000  # images that are chosen by clusters; of more that are wanted the most doubtful follow
_POOL = 10       # times as many of the most doubtful images take part


@dataclass
class Unlabelled:
    """An image without a label, as a network sees it."""
    name: str
    doubt: float            # that of doubt_of
    confidence: float
    probable: list[str]     # the most probable classes, the first one with `confidence`
    features: torch.Tensor  # (dim,), float16


class Pool:
    """The most doubtful of any number of images, from which `most` are chosen; and the most certain of each class."""

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
        self.kept.append(Unlabelled(name, doubt_of(prediction), prediction.confidence, probable, features.half()))
        best = self.certain.setdefault(probable[0], [])
        best.append((prediction.certainty, name))
        best.sort(key=lambda found: -found[0])
        del best[TYPICAL:]
        if len(self.kept) >= 2 * self.room:
            self.prune()

    def prune(self) -> None:
        """Keep the most doubtful images only."""
        self.kept.sort(key=lambda found: -found.doubt)
        del self.kept[self.room:]

    def most_valuable(self) -> list[Unlabelled]:
        """Return the images that a label would teach most, in their order."""
        self.prune()
        if not self.kept:
            return []
        doubt = torch.tensor([found.doubt for found in self.kept])
        features = torch.stack([found.features for found in self.kept]).float()
        order = teaching_order(doubt, features, min(self.most, COMPARED))
        others = sorted(set(range(len(self.kept))) - set(order))  # the most doubtful first
        return [self.kept[place] for place in [*order, *others][:self.most]]


def doubt_of(prediction: Prediction) -> float:
    """Return 1 less the difference between the two largest probabilities; more if the image is unlike those of val, so
    that its certainty is below its confidence.
    """
    probabilities = [probability for _, probability in prediction.top]
    margin = probabilities[0] - sum(probabilities[1:2])
    return 1 - margin * prediction.certainty / prediction.confidence


def teaching_order(doubt: torch.Tensor, features: torch.Tensor, most: int) -> list[int]:
    """Return the places of at most `most` images: the middle of each cluster of the `features` (N, dim), from which the
    mean is taken and of which the direction alone counts. Images of more `doubt` (N,) draw the clusters to them; those
    whose clusters hold most of it come first.
    """
    from sklearn.cluster import KMeans  # takes a second
    from sklearn.exceptions import ConvergenceWarning

    directions = normalize(features - features.mean(0)).numpy()
    weights = doubt.clamp(min=1e-6).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConvergenceWarning)  # of fewer different images than clusters
        found = KMeans(min(most, len(doubt)), n_init=1, random_state=0).fit(directions, sample_weight=weights)
    to_middle = np.linalg.norm(directions - found.cluster_centers_[found.labels_], axis=1)
    clusters, totals = np.unique(found.labels_), np.bincount(found.labels_, weights)
    order = []
    for cluster in sorted(clusters.tolist(), key=lambda cluster: -totals[cluster]):
        members = np.flatnonzero(found.labels_ == cluster)
        order.append(int(members[to_middle[members].argmin()]))
    return order
