"""A network in evaluation mode over a whole loader."""
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import resize

from common.data.loaders import in_turn
from common.runtime.console import Bar
from common.runtime.device import to_device
from common.runtime.distributed import gather


@dataclass
class Outputs:
    """What a network makes of N images, in fp32 on the CPU."""
    logits: torch.Tensor           # (N, classes)
    targets: torch.Tensor          # (N,)
    features: torch.Tensor | None  # (N, dim), of models.logits_and_features


@torch.no_grad()  # not inference_mode, which the threads of DataParallel would leave
def validate(model: nn.Module, loader: DataLoader, size: tuple[int, int], device: torch.device, label: str,
             between_batches: Callable[[], None] = lambda: None) -> Outputs:
    """The outputs of a model of common.runtime.parallel that looks with logits_and_features: those of all processes,
    each of which has its own_batches of the set.

    `size` is the (height, width) that the images are resized to, `label` is the progress bar's.
    """
    model.train()  # some networks of timm keep numbers from eval to eval, and throw them away in between
    model.eval()
    batches = []
    for images, labels in Bar(loader, desc=label, unit='batch'):
        logits, features = model(resize(to_device(images, device), size))
        features = None if features is None else features.float().cpu()
        batches.append((logits.float().cpu(), labels.clone(), features))  # the worker's memory would keep a file open
        between_batches()
    logits, targets, features = zip(*in_turn(gather(batches)), strict=True)
    return Outputs(torch.cat(logits), torch.cat(targets), None if features[0] is None else torch.cat(features))
