"""A network in evaluation mode over a whole loader, and BatchNorm's statistics, which are measured before that."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader

from common.data.loaders import in_turn
from common.runtime.console import Bar
from common.runtime.device import to_device
from common.runtime.processes import gather
from models import VOLO, logits_and_features


class EvalModel(nn.Module):
    """The network in autocast: images (B, 3, H, W) -> (logits (B, classes), features (B, dim) or None).

    Autocast is entered here because DataParallel's threads forget the dtype of the caller's autocast.
    """

    def __init__(self, net: nn.Module, amp_dtype: torch.dtype | None):
        super().__init__()
        self.net = net
        self.amp_dtype = amp_dtype

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        with torch.autocast(images.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            return logits_and_features(self.net, images)


@dataclass
class Outputs:
    """What a network makes of N images, in fp32 on the CPU."""
    logits: torch.Tensor           # (N, classes)
    targets: torch.Tensor          # (N,)
    features: torch.Tensor | None  # (N, dim), of models.logits_and_features


@torch.no_grad()  # not inference_mode, which the threads of DataParallel would leave
def validate(model: nn.Module, loader: DataLoader, device: torch.device, label: str,
             between_batches: Callable[[], None] = lambda: None) -> Outputs:
    """Return the outputs of an EvalModel: those of all processes, each of which has its own_batches of the set.

    `label` is the progress bar's.
    """
    model.train()  # some networks of timm keep numbers from eval to eval, and throw them away in between
    model.eval()
    batches = []
    for images, labels in Bar(loader, desc=label, unit='batch'):
        logits, features = model(to_device(images, device))
        features = None if features is None else features.float().cpu()
        batches.append((logits.float().cpu(), labels.clone(), features))  # the worker's memory would keep a file open
        between_batches()
    logits, targets, features = zip(*in_turn(gather(batches)), strict=True)
    return Outputs(torch.cat(logits), torch.cat(targets), None if features[0] is None else torch.cat(features))


@torch.no_grad()
def measure_batch_norm(nets: Sequence[nn.Module], loader: DataLoader, device: torch.device,
                       amp_dtype: torch.dtype | None) -> None:
    """Measure the running statistics of BatchNorm again, in each of `nets`, copies of one network with different
    weights: the mean over the batches of the loader, training images without augmentation.

    While a network trains, its statistics follow the last ten batches, of augmented images. Those of many images as
    evaluation has them suit what it has learnt better (arXiv:2105.07576, 1906.06423). The networks are in evaluation
    mode afterwards. Under torchrun every process has its rows of each batch.
    """
    names = [name for name, module in nets[0].named_modules() if has_statistics(module)]
    norms = [net.get_submodule(name) for net in nets for name in names]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for net in nets:
        net.train()  # some networks of timm keep numbers from eval to eval, and throw them away in between
        net.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
    for number, (images, _) in enumerate(Bar(loader, desc='statistics for BatchNorm', unit='batch'), 1):
        images = to_device(images, device)
        for norm in norms:
            norm.momentum = 1 / number  # the mean of all batches so far
        with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):
            for net in nets:
                part = net.patch_embed if isinstance(net, VOLO) else net  # all BatchNorms of a VOLO are in its stem
                part(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def has_statistics(module: nn.Module) -> bool:
    """Return whether a module is a BatchNorm with running statistics."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
