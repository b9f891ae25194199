"""Whether a picture is like those of the validation set at all: a network names a class for any picture.

Lee et al. 2018, arXiv:1807.03888, measure how far the features of a picture lie from those of known ones, by their
covariance (Mahalanobis). Here they are compared with all known pictures rather than with those of a class each, so that
few are enough.
"""
import torch

FEWEST = 20    # known pictures; fewer say too little
MOST = 5000    # of them that the covariance is taken from
KEPT = 1000    # of their distances
RARE = 0.05    # pictures of which fewer are as unusual are less certain


def fit_outliers(features: torch.Tensor | None) -> dict[str, torch.Tensor] | None:
    """What `typicality` needs to know of the features (N, dim) of known pictures, for a checkpoint; None for none."""
    if features is None or len(features) < FEWEST or not features.isfinite().all():
        return None
    from sklearn.covariance import LedoitWolf  # takes a second

    features = evenly(features, MOST)
    found = LedoitWolf().fit(features.double().numpy())
    known = {'mean': torch.tensor(found.location_).float(), 'precision': torch.tensor(found.precision_).float(),
             'share': torch.tensor((1 - found.shrinkage_) / len(features)).float()}  # of each in the covariance
    return {**known, 'squares': evenly(squared_distances(features, known, own=True).sort().values, KEPT)}


def evenly(rows: torch.Tensor, most: int) -> torch.Tensor:
    """At most so many rows of a tensor, from the first to the last."""
    return rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).round().long()]


def typicality(features: torch.Tensor, known: dict[str, torch.Tensor], own: bool = False) -> torch.Tensor:
    """The share (N,), above 0 up to 1, of known pictures that lie as far out as each picture, from features (N, dim).

    Of pictures like the known ones, a share of x is below x: a conformal p-value. `own`: they are the known ones.
    """
    squares = known['squares']
    further = len(squares) - torch.searchsorted(squares, squared_distances(features, known, own))
    return (further + 1) / (len(squares) + 1)


def squared_distances(features: torch.Tensor, known: dict[str, torch.Tensor], own: bool = False) -> torch.Tensor:
    """Of features (N, dim) from the mean, (N,), each direction in its own standard deviations.

    Known pictures (`own`) lie as far out as if they had no share in the covariance (Sherman and Morrison's formula).
    """
    offsets = features.double() - known['mean']
    squares = ((offsets @ known['precision'].double()) * offsets).sum(1)
    return (squares / (1 - known['share'] * squares).clamp(min=1e-6) if own else squares).float()


def certainty(confidence: torch.Tensor, typical: torch.Tensor) -> torch.Tensor:
    """The confidence, or less for pictures among the RARE most unusual ones. Shapes (N,), from 0 to 1."""
    return torch.minimum(confidence, typical / RARE)
