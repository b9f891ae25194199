"""A network in evaluation mode over a loader."""
import torch

from common.runtime.console import Bar


@torch.no_grad()  # not inference_mode, which the threads of DataParallel would leave
def validate(model, loader, device, label, between_batches=lambda: None):
    """Run a model of common.device.parallel in evaluation mode over a loader of (images, targets).

    Returns (logits (N, classes), targets (N,)) in fp32 on the CPU.
    """
    model.train()  # some networks of timm keep numbers from eval to eval, and throw them away in between
    model.eval()
    logits, targets = [], []
    for images, labels in Bar(loader, desc=label, unit='batch'):
        logits.append(model(images.to(device, non_blocking=True)).float().cpu())
        targets.append(labels.clone())  # the worker's own memory would keep a file open
        between_batches()
    return torch.cat(logits), torch.cat(targets)
