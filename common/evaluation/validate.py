"""A network in evaluation mode over a whole loader."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import resize

from common.data.loaders import in_turn
from common.runtime.console import Bar
from common.runtime.device import to_device
from common.runtime.processes import gather
from models import VOLO


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


# BatchNorm's mean and variance for evaluation, from training pictures as evaluation has them

@torch.no_grad()
def measure_batch_norm(nets: Sequence[nn.Module], loader: DataLoader, size: tuple[int, int], device: torch.device,
                       amp_dtype: torch.dtype | None) -> None:
    """Measure the running statistics of BatchNorm again, in each of `nets`, copies of one network with different
    weights: the mean over the batches of the loader, whose images are resized to `size`, (height, width).

    Layers that are in evaluation mode in the first of them, because they are frozen, keep theirs.

    The networks are in evaluation mode afterwards. Under torchrun every process has its rows of each batch.
    """
    names = [name for name, module in nets[0].named_modules() if module.training and has_statistics(module)]
    norms = [net.get_submodule(name) for net in nets for name in names]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for net in nets:
        net.train().eval()  # some networks of timm keep numbers from eval to eval, and throw them away in between
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
    for number, (images, _) in enumerate(Bar(loader, desc='statistics for BatchNorm', unit='batch'), 1):
        images = resize(to_device(images, device), size)
        for norm in norms:
            norm.momentum = 1 / number  # the mean of all batches so far
        with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):
            for net in nets:
                (net.patch_embed if isinstance(net, VOLO) else net)(images)  # all that a VOLO has are in its stem
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def has_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
