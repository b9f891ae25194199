"""The worth of a confidence: of images classified with one of 80 %, four in five should be right."""
import math

import numpy as np
import torch
import torch.nn.functional as F

CONFIDENCE_BINS = 15


def fit_temperature(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Return by what logits (N, classes) are to be divided so that their softmax fits the targets (N,) best.

    Guo et al. 2017, arXiv:1706.04599. It changes no decision. That a few images are all right is no reason for 100 %:
    the labels are smoothed as if there were two images more, after Platt 1999.
    """
    from scipy.optimize import minimize_scalar  # takes half a second

    logits = logits.double()
    smoothing = 1 / (len(targets) + 2)

    def loss(power: float) -> float:
        return F.cross_entropy(logits / math.exp(power), targets, label_smoothing=smoothing).item()

    return math.exp(minimize_scalar(loss, bounds=(-3, 3), method='bounded').x)


def reliability(logits: torch.Tensor, targets: torch.Tensor) -> dict[str, np.ndarray]:
    """Return {'count', 'confidence', 'accuracy'}, (CONFIDENCE_BINS,) each: of the images (N,) whose confidence lies in
    each of the equal parts of [0, 1]. Confidence and accuracy are averages, from 0 to 1, and 0 where there is none.
    """
    confidence, guess = logits.softmax(1).max(1)
    # A run that diverged gives NaN.
    place = (confidence.nan_to_num() * CONFIDENCE_BINS).long().clamp(max=CONFIDENCE_BINS - 1)

    def in_bins(values: torch.Tensor) -> np.ndarray:
        """Return the sum of values (N,) in each bin."""
        return torch.zeros(CONFIDENCE_BINS, dtype=torch.float64).index_add(0, place, values.double()).numpy()

    count = in_bins(torch.ones_like(confidence))
    return {'count': count.astype(int),
            'confidence': in_bins(confidence) / count.clip(1),
            'accuracy': in_bins(guess == targets) / count.clip(1)}


def calibration_error(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the ECE, from 0 to 1: how far confidence and accuracy lie apart, on average over the images."""
    found = reliability(logits, targets)
    return float((found['count'] * abs(found['confidence'] - found['accuracy'])).sum() / len(targets))
