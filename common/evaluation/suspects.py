"""Pictures whose label is perhaps wrong, by confident learning (Northcutt et al. 2021, arXiv:1911.00068)."""
import torch


def find_suspects(probabilities: torch.Tensor, labels: torch.Tensor) -> list[tuple[int, int, float]]:
    """[(index, probable class, score)] from probabilities (N, classes) of a network that has not learnt these labels
    (N,) by heart; the most suspicious first.

    A picture is suspected of belonging to another class if it is as probable there as the pictures with that label are
    on average. The score, from -1 to 1, is the probability of its label less that of the other class.
    """
    indices, classes = torch.arange(len(labels)), probabilities.shape[1]
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


# Training pictures whose label may be wrong: the network learns those last, if at all

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
