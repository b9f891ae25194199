"""BatchNorm's mean and variance for evaluation, from training pictures as evaluation has them.

While a network trains they follow its last ten batches, of augmented pictures. Those of many pictures without
augmentation suit what it has learnt better (arXiv:2105.07576, 1906.06423).
"""
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import resize

from common.runtime.console import Bar
from common.runtime.device import to_device
from common.training.plan import Size
from common.training.state import TrainState
from models import VOLO


@torch.no_grad()
def measure_batch_norm(state: TrainState, loader: DataLoader, size: Size) -> None:
    """Take the running statistics of BatchNorm anew, in the raw weights and in the averaged ones: the mean over the
    batches of the loader, whose images are resized to `size`. Layers that are in evaluation mode, frozen, keep theirs.

    The networks are in evaluation mode afterwards. Under torchrun every process has its rows of each batch.
    """
    names = [name for name, module in state.net.named_modules() if module.training and has_statistics(module)]
    nets = [state.net, state.ema.module] if state.ema else [state.net]
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
        images = resize(to_device(images, state.device), size)
        for norm in norms:
            norm.momentum = 1 / number  # the mean of all batches so far
        with torch.autocast(state.device.type, state.amp_dtype, enabled=state.amp_dtype is not None):
            for net in nets:
                (net.patch_embed if isinstance(net, VOLO) else net)(images)  # all that a VOLO has are in its stem
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def has_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
