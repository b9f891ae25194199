"""A network in evaluation mode over a whole loader."""
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import resize

from common.data.loaders import in_turn
from common.runtime.console import Bar
from common.runtime.distributed import gather


@torch.no_grad()  # not inference_mode, which the threads of DataParallel would leave
def validate(model: nn.Module, loader: DataLoader, size: tuple[int, int], device: torch.device, label: str,
             between_batches: Callable[[], None] = lambda: None) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits (N, classes), targets (N,)), in fp32 on the CPU, of a model of common.runtime.parallel: those of all
    processes, each of which has its own_batches of the set.

    `size` is the (height, width) that the images are resized to, `label` is the progress bar's.
    """
    model.train()  # some networks of timm keep numbers from eval to eval, and throw them away in between
    model.eval()
    batches = []
    for images, labels in Bar(loader, desc=label, unit='batch'):
        logits = model(resize(images.to(device, non_blocking=True), size)).float().cpu()
        batches.append((logits, labels.clone()))  # the worker's own memory would keep a file open
        between_batches()
    logits, targets = zip(*in_turn(gather(batches)), strict=True)
    return torch.cat(logits), torch.cat(targets)
