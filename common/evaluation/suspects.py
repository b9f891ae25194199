"""Images whose label may be wrong: by confident learning, and by what a network learns last.

Of images that it has not trained on, a network's probabilities tell (Northcutt et al. 2021, arXiv:1911.00068). Of
training images the margin does, a label's logit less the largest other one, on average over the training: wrong labels
are learnt last, if at all (Pleiss et al. 2020, arXiv:2001.10528).
"""
import numpy as np
import torch


def find_suspects(probabilities: torch.Tensor, labels: torch.Tensor) -> list[tuple[int, int, float]]:
    """Return [(index, probable class, score)] from probabilities (N, classes) of a network that has not learnt these
    labels (N,) by heart; the most suspicious first.

    An image is suspected of belonging to another class if it is as probable there as the images with that label are
    on average. The score, from -1 to 1, is the probability of its label less that of the other class.
    """
    indices = torch.arange(len(labels))
    classes = probabilities.shape[1]
    own = probabilities[indices, labels]
    counts = torch.bincount(labels, minlength=classes)
    bars = torch.zeros(classes).index_add(0, labels, own) / counts.clamp(min=1)
    bars[counts == 0] = 1.
    reached = probabilities.where(probabilities >= bars, -1.)
    reached[indices, labels] = -1.
    best, guess = reached.max(1)
    suspected = (best > own).nonzero()[:, 0]  # and not only because several classes reach their bars
    scores = (own - best)[suspected]
    return [(index, guess[index].item(), score)
            for score, index in sorted(zip(scores.tolist(), suspected.tolist(), strict=True))]


class Margins:
    """Sums of margins over the epochs for each of `count` training images; those of mixed images do not count."""

    def __init__(self, count: int):
        self.sums = torch.zeros(count)
        self.counts = torch.zeros(count, dtype=torch.int32)
        self.guesses = torch.zeros(count, dtype=torch.int32)  # the most probable other class, when it was seen last

    def add(self, indices: np.ndarray, found: torch.Tensor) -> None:
        """Add what an update found of the images with these indices (images,): `found` (images, 3) has margin, most
        probable other class, and whether the label is no mixture.
        """
        unmixed = found[:, 2] > 0
        margin, guess, _ = found[unmixed].T
        seen = torch.from_numpy(indices)[unmixed]
        self.sums[seen] += margin.float()
        self.counts[seen] += 1
        self.guesses[seen] = guess.int()

    def suspects(self) -> list[tuple[int, int, float]]:
        """Return [(index, probable class, score)] of images for which another class was more probable than their
        label, on average over the epochs; the most suspicious first. The score, from -1 to 0, is the difference of two
        probabilities whose logits differ by the mean margin, as in find_suspects.
        """
        scores = (self.sums / self.counts.clamp(min=1) / 2).tanh()
        indices = (scores < 0).nonzero()[:, 0]
        return [(index, self.guesses[index].item(), scores[index].item())
                for index in indices[scores[indices].argsort(stable=True)].tolist()]

    def load(self, saved: dict[str, torch.Tensor]) -> None:
        """Go on from the vars() of another one. Raises KeyError, RuntimeError, TypeError or AttributeError."""
        for name, tensor in vars(self).items():
            tensor.copy_(saved[name])
