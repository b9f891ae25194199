"""How typical an image is of the validation set: a network gives a class to any image, however strange.

Lee et al. 2018, arXiv:1807.03888, measure how far the features of an image lie from those of known ones, by their
covariance (Mahalanobis). Here they are compared with all known images rather than with those of each class, so that
few are enough.
"""
import torch

FEWEST_KNOWN = 20      # known images; fewer say too little
MOST_FITTED = 5000     # known images that the covariance is taken from
KEPT_DISTANCES = 1000  # of known images, for a checkpoint
RARE = 0.05            # an image is less certain if a smaller fraction of known images is as unusual


def fit_outliers(features: torch.Tensor | None) -> dict[str, torch.Tensor] | None:
    """Return what `typicality` needs to know of the features (N, dim) of known images, for a checkpoint; None where
    there are none or too few.
    """
    if features is None or len(features) < FEWEST_KNOWN or not features.isfinite().all():
        return None
    from sklearn.covariance import LedoitWolf  # takes a second

    features = evenly(features, MOST_FITTED)
    found = LedoitWolf().fit(features.double().numpy())
    known = {'mean': torch.tensor(found.location_).float(),
             'precision': torch.tensor(found.precision_).float(),
             'share': torch.tensor((1 - found.shrinkage_) / len(features)).float()}  # of each in the covariance
    squares = squared_distances(features, known, own=True).sort().values
    return {**known, 'squares': evenly(squares, KEPT_DISTANCES)}


def evenly(rows: torch.Tensor, most: int) -> torch.Tensor:
    """Return at most so many rows of a tensor, from the first to the last."""
    return rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).round().long()]


def typicality(features: torch.Tensor, known: dict[str, torch.Tensor], own: bool = False) -> torch.Tensor:
    """Return the fraction (N,), above 0 up to 1, of known images that lie as far out as each image with these features
    (N, dim).

    Of images like the known ones, a fraction of x is below x: a conformal p-value. `own`: they are the known ones.
    """
    squares = known['squares']
    further = len(squares) - torch.searchsorted(squares, squared_distances(features, known, own))
    return (further + 1) / (len(squares) + 1)


def squared_distances(features: torch.Tensor, known: dict[str, torch.Tensor], own: bool = False) -> torch.Tensor:
    """Return the squared distances (N,) of features (N, dim) from the mean, each direction in its standard deviation.

    Known images (`own`) lie as far out as if they had no share in the covariance (Sherman and Morrison's formula).
    """
    offsets = features.double() - known['mean']
    squares = ((offsets @ known['precision'].double()) * offsets).sum(1)
    if own:
        squares = squares / (1 - known['share'] * squares).clamp(min=1e-6)
    return squares.float()


def certainty(confidence: torch.Tensor, typical: torch.Tensor) -> torch.Tensor:
    """Return the confidence, or less for images among the RARE most unusual ones. Shapes (N,), from 0 to 1."""
    return torch.minimum(confidence, typical / RARE)
