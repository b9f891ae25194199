"""The optimizer: Muon for the matrices of a network that learns from scratch, or one of timm's."""
import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import nn
from torch.optim.adamw import adamw

from common.runtime.errors import UserError

# a, b, c of polynomials a·s + b·s³ + c·s⁵ that, one after the other, bring all singular values s from [0.005, 1] into
# [0.4, 1.6]. Each is the nearest to 1 on what the one before leaves, with 2 % of room for rounding (Amsel et al.,
# arXiv:2505.16932). Five, which bring them nearer to 1, cost two thirds more and gain nothing by it (docs/recipe.md).
POLYNOMIALS = ((8.1400, -23.0368, 16.3967), (3.8518, -2.7640, 0.5084), (3.1586, -2.2837, 0.4577))

# How much of the earlier gradients, and of their squares, AdamW remembers (Muon for all but matrices). In short runs
# the usual 0.9 was as good within the noise (docs/recipe.md).
BETAS = (0.8, 0.999)


class Muon(torch.optim.Optimizer):
    """Orthogonalised updates of the matrices, AdamW's of all other parameters.

    The update of a matrix is its momentum with all singular values near 1: what only few images tell about moves the
    weights as far as what they have in common (Jordan et al., kellerjordan.github.io/posts/muon). It is scaled to the
    size that AdamW's would have, which makes learning rates and weight decay alike (Liu et al., arXiv:2502.16982).
    A convolution counts as a matrix (output channels, the rest). `dtype` is what is multiplied in.
    """
    found_inf: torch.Tensor | None = None  # other than 0: the update is skipped

    def __init__(self, groups: Iterable, lr: float, betas: tuple[float, float] = (0.9, 0.999), momentum: float = 0.9,
                 weight_decay: float = 0., dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__(groups, {'lr': lr, 'betas': betas, 'momentum': momentum, 'weight_decay': weight_decay,
                                  'fused': True})  # so that load_state_dict() puts the steps on the device
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            alike = defaultdict(list)  # matrices by their shape
            others = []
            for parameter in group['params']:
                if parameter.grad is None:
                    continue
                if is_matrix(parameter):
                    alike[parameter.shape].append(parameter)
                else:
                    others.append(parameter)
            for matrices in alike.values():
                self.update_matrices(matrices, group)
            if others:
                self.update_others(others, group)

    def update_matrices(self, matrices: list[nn.Parameter], group: dict) -> None:
        """Update matrices of the same shape."""
        skipped = self.found_inf
        if skipped is None:
            skipped = torch.zeros((), device=matrices[0].device)
        looks_ahead = []
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix] = {'momentum': torch.zeros_like(matrix)}
            momentum = self.state[matrix]['momentum']
            gradient = torch.where(skipped == 0, matrix.grad, momentum)
            momentum.lerp_(gradient, 1 - group['momentum'])
            looks_ahead.append(gradient.lerp(momentum, group['momentum']).flatten(1))  # Nesterov's
        directions = orthogonalised(torch.stack(looks_ahead), self.dtype)
        lr = group['lr'] * (1 - skipped)
        rate = 0.2 * math.sqrt(max(directions.shape[1:])) * lr
        for matrix, direction in zip(matrices, directions, strict=True):
            matrix.mul_(1 - lr * group['weight_decay']).addcmul_(direction.view_as(matrix), rate, value=-1)

    def update_others(self, others: list[nn.Parameter], group: dict) -> None:
        """Update parameters that are no matrices, as AdamW does."""
        for parameter in others:
            if not self.state[parameter]:
                self.state[parameter] = {'step': torch.zeros((), device=parameter.device),
                                         'exp_avg': torch.zeros_like(parameter),
                                         'exp_avg_sq': torch.zeros_like(parameter)}
        gradients = [parameter.grad for parameter in others]
        averages = [self.state[parameter]['exp_avg'] for parameter in others]
        squares = [self.state[parameter]['exp_avg_sq'] for parameter in others]
        steps = [self.state[parameter]['step'] for parameter in others]
        adamw(others, gradients, averages, squares, [], steps, fused=True,
              found_inf=self.found_inf, amsgrad=False, beta1=group['betas'][0], beta2=group['betas'][1],
              lr=group['lr'], weight_decay=group['weight_decay'], eps=1e-8, maximize=False)


def is_matrix(parameter: torch.Tensor) -> bool:
    """Return whether Muon orthogonalises a parameter: not biases, norms, pos_embed, cls_token, depthwise filters."""
    return parameter.ndim >= 2 and min(parameter.shape[:2]) > 1


def orthogonalised(matrices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return matrices (N, rows, columns) with all singular values near 1, by Newton-Schulz iterations in `dtype`."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for a, b, c in POLYNOMIALS:
        gram = x @ x.mT  # (N, rows, rows)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def optimizer_flop(optimizer: torch.optim.Optimizer) -> float:
    """Return the floating-point operations of an update: those of Muon's matrix products, else too few to count."""
    flop = 0
    if isinstance(optimizer, Muon):
        for group in optimizer.param_groups:
            for matrix in filter(is_matrix, group['params']):
                short, long = sorted((len(matrix), matrix[0].numel()))
                flop += len(POLYNOMIALS) * 2 * short * short * (2 * long + short)
    return float(flop)


def can_skip(optimizer: torch.optim.Optimizer, device: torch.device) -> bool:
    """Return whether the optimizer can itself leave out an update, by its attribute found_inf, so that no GPU is waited
    for: Muon here and PyTorch's fused ones can.

    Apple's ignore the attribute before PyTorch has pytorch/pytorch#186360.
    """
    return bool(optimizer.defaults.get('fused')) and device.type in ('cpu', 'cuda')


def build_optimizer(name: str, net: nn.Module, lr: float, weight_decay: float,
                    amp_dtype: torch.dtype | None) -> torch.optim.Optimizer:
    """Return OPTIMIZER = `name` for the parameters of the network. Raises UserError if it cannot be built.

    Norms, biases, pos_embed and cls_token have no weight decay. Muon multiplies in bfloat16 where autocast does.
    """
    try:
        exempt = getattr(net, 'no_weight_decay', set)()
        groups = param_groups_weight_decay(net, weight_decay, no_weight_decay_list=exempt)
        if name == 'muon':
            dtype = torch.bfloat16 if amp_dtype is torch.bfloat16 else torch.float32
            return Muon(groups, lr, betas=BETAS, dtype=dtype)
        if name == 'adamw':
            return torch.optim.AdamW(groups, lr, betas=BETAS, fused=True)
        return create_optimizer_v2(groups, name, lr=lr)
    except Exception as error:  # those of other packages, which may be missing
        raise UserError(f'OPTIMIZER = {name!r} cannot be built: {error}') from error
