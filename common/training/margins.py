"""Training pictures whose label may be wrong: the network learns those last, if at all.

Pleiss et al. 2020, arXiv:2001.10528, tell them by the margin of each picture, its label's logit less the largest other
one, on average over the training.
"""
import torch


class Margins:
    """Sums over the epochs for each of `count` training pictures; those of mixed pictures do not count."""

    def __init__(self, count: int):
        self.sums = torch.zeros(count)
        self.counts = torch.zeros(count, dtype=torch.int32)
        self.guesses = torch.zeros(count, dtype=torch.int32)  # the most probable other class, when it was seen last

    def add(self, indices: torch.Tensor, found: torch.Tensor) -> None:
        """`found` (images, 3) is what BatchMeter says of the pictures with these indices (images,)."""
        margin, guess, unmixed = found[found[:, 2] > 0].T
        seen = indices[found[:, 2] > 0]
        self.sums[seen] += margin.float()
        self.counts[seen] += 1
        self.guesses[seen] = guess.int()

    def suspects(self) -> list[tuple[int, int, float]]:
        """[(index, probable class, score)] of pictures for which another class was more probable than their label, on
        average over the epochs; the most suspicious first. The score, from -1 to 0, is the difference of two
        probabilities whose logits differ by the mean margin, as common/evaluation/suspects.py has it.
        """
        scores = (self.sums / self.counts.clamp(min=1) / 2).tanh()
        indices = (scores < 0).nonzero()[:, 0]
        return [(index, self.guesses[index].item(), scores[index].item())
                for index in indices[scores[indices].argsort(stable=True)].tolist()]

    def load(self, saved: dict[str, torch.Tensor]) -> None:
        """Go on from the vars() of another one. Raises KeyError, RuntimeError, TypeError or AttributeError."""
        for name, tensor in vars(self).items():
            tensor.copy_(saved[name])
