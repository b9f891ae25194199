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
