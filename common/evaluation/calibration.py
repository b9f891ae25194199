"""Confidence that can be taken at its word: of pictures named with 80 %, four in five are right."""
import math

import numpy as np
import torch
import torch.nn.functional as F

BINS = 15  # of confidence


def fit_temperature(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """What logits (N, classes) are to be divided by so that their softmax fits the targets (N,) best.

    Guo et al. 2017, arXiv:1706.04599. It changes no decision. That all of a few pictures are right is no reason for
    100 %: the labels are smoothed as if there were two pictures more, after Platt 1999.
    """
    from scipy.optimize import minimize_scalar  # takes half a second

    logits, smoothing = logits.double(), 1 / (len(targets) + 2)

    def loss(power: float) -> float:
        return F.cross_entropy(logits / math.exp(power), targets, label_smoothing=smoothing).item()

    return math.exp(minimize_scalar(loss, bounds=(-3, 3), method='bounded').x)


def reliability(logits: torch.Tensor, targets: torch.Tensor) -> dict[str, np.ndarray]:
    """{'count', 'confidence', 'accuracy'}: (BINS,) each, of the pictures (N,) whose confidence lies in each of BINS
    equal parts of [0, 1]; confidence and accuracy are averages, from 0 to 1, and 0 where there is none.
    """
    confidence, guess = logits.softmax(1).max(1)
    place = (confidence.nan_to_num() * BINS).long().clamp(max=BINS - 1)  # a run that diverged gives NaN
    count, sure, right = (torch.zeros(BINS, dtype=torch.float64).index_add(0, place, values.double()).numpy()
                          for values in (torch.ones_like(confidence), confidence, guess == targets))
    return {'count': count.astype(int), 'confidence': sure / count.clip(1), 'accuracy': right / count.clip(1)}


def calibration_error(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """ECE, from 0 to 1: how far confidence and accuracy lie apart, on average over the pictures."""
    found = reliability(logits, targets)
    return float((found['count'] * abs(found['confidence'] - found['accuracy'])).sum() / len(targets))
