"""common/training/optimizer.py: Muon, and that it is what timm's is but for its fallback."""
import copy
import functools

import pytest
import torch
from helpers import build, tiny_volo
from timm.optim import muon as timm_muon
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common.training.optimizer import (
    BETAS,
    POLYNOMIALS,
    Muon,
    build_optimizer,
    can_skip,
    is_matrix,
    optimizer_flop,
    orthogonalised,
)

RATES = {'lr': 1e-2, 'weight_decay': 0.1}


def gradients(net, seed, scale=1.):
    torch.manual_seed(seed)
    for parameter in net.parameters():
        parameter.grad = scale * torch.randn_like(parameter)


def trained(optimizer, net, updates=3):
    for seed in range(updates):
        gradients(net, seed)
        optimizer.step()
    return [parameter.detach().clone() for parameter in net.parameters()]


def test_matrices_are_updated_as_by_timms_muon_and_all_else_as_by_adamw(monkeypatch):
    """timm's multiplies in bfloat16 unless it is told otherwise."""
    monkeypatch.setattr(timm_muon, 'zeropower_via_newtonschulz', functools.partial(
        timm_muon.zeropower_via_newtonschulz, dtype=torch.float32))
    net, theirs, adamw = tiny_volo(), tiny_volo(), tiny_volo()
    for other in (theirs, adamw):
        other.load_state_dict(net.state_dict())
    found = trained(Muon(net.parameters(), betas=(0.8, 0.9), dtype=torch.float32, **RATES), net)
    expected = trained(timm_muon.Muon(theirs.parameters(), momentum=0.9, nesterov=True, ns_steps=len(POLYNOMIALS),
                                      ns_coefficients=POLYNOMIALS, **RATES), theirs)
    others = trained(torch.optim.AdamW(adamw.parameters(), betas=(0.8, 0.9), **RATES), adamw)
    for (name, parameter), ours, matrix, other in zip(net.named_parameters(), found, expected, others, strict=True):
        torch.testing.assert_close(ours, matrix if is_matrix(parameter) else other, msg=name)
    assert {name for name, parameter in net.named_parameters() if parameter.ndim > 1 and not is_matrix(parameter)} == {
        'pos_embed', 'cls_token'}
    assert not is_matrix(nn.Conv2d(8, 8, 3, groups=8).weight)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
@pytest.mark.parametrize('shape', [(3, 64, 100), (3, 100, 64), (1, 64, 64)])
def test_all_singular_values_come_near_one(dtype, shape):
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.logspace(-1.8, 0, 64)  # the least of them is 0.0055 of the norm
    found = torch.linalg.svdvals(orthogonalised(left * values @ right, dtype))
    assert found.min() > 0.4 and found.max() < 1.6


@pytest.mark.parametrize('value', [1e-5, 0.3, 1.0039, 3e4])
def test_rounding_up_makes_nothing_larger(value):
    """A matrix of one singular value, equal entries: bfloat16 can round all of them up."""
    found = torch.linalg.svdvals(orthogonalised(torch.full((1, 60, 90), value), torch.bfloat16))[0]
    assert 0.4 < found[0] < 1.6 and found[1] < 0.1


def test_blank_gradients_move_nothing():
    assert not orthogonalised(torch.zeros(2, 8, 8), torch.float32).any()


def test_a_skipped_update_changes_nothing():
    net = tiny_volo()
    optimizer = Muon(net.parameters(), dtype=torch.float32, **RATES)
    before, states = trained(optimizer, net), copy.deepcopy([*optimizer.state.values()])
    gradients(net, 0, torch.nan)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    torch.testing.assert_close([*net.parameters()], before, rtol=0, atol=0)
    torch.testing.assert_close([*optimizer.state.values()], states, rtol=0, atol=0)
    optimizer.found_inf = torch.zeros(())
    after = trained(optimizer, net, 1)
    assert all((new != old).any() for new, old in zip(after, before, strict=True))


def test_float16_scaling_skips_updates_by_itself():
    net = nn.Linear(8, 8)
    optimizer, scaler = Muon(net.parameters(), dtype=torch.float32, **RATES), torch.amp.GradScaler('cpu')
    scaler.scale(torch.ones(()))
    before = [parameter.clone() for parameter in net.parameters()]
    for scale, changed in ((torch.inf, False), (1., True)):
        gradients(net, 0, scale)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert all(changed == (new != old).any() for new, old in zip(net.parameters(), before, strict=True))


def test_it_goes_on_from_its_state():
    nets = [tiny_volo(), tiny_volo()]
    optimizers = [Muon(net.parameters(), dtype=torch.float32, **RATES) for net in nets]
    trained(optimizers[0], nets[0])
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    torch.testing.assert_close(*(trained(*pair) for pair in zip(optimizers, nets, strict=True)), rtol=0, atol=0)


def test_its_operations_are_counted():
    net = tiny_volo()
    optimizer = Muon(net.parameters(), dtype=torch.float32, **RATES)
    gradients(net, 0)
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    assert optimizer_flop(optimizer) == counter.get_total_flops() > 0


def test_the_run_counts_them(folder):
    *_, state = build(optimizer='adamw')
    assert optimizer_flop(state.optimizer) == 0 and state.update_flop(8) == 8 * state.image_flop > 0
    *_, state = build(optimizer='muon')
    assert state.update_flop(8) == 8 * state.image_flop + optimizer_flop(state.optimizer) > 8 * state.image_flop
    state.image_flop = None
    assert state.update_flop(8) == 0, 'unknown'


def test_what_the_settings_say_reaches_it():
    net = tiny_volo()
    dtypes = {amp: build_optimizer('muon', net, 0.1, 0.3, amp).dtype
              for amp in (None, torch.bfloat16, torch.float16)}
    assert dtypes == {None: torch.float32, torch.bfloat16: torch.bfloat16, torch.float16: torch.float32}
    for name in ('muon', 'adamw'):
        optimizer = build_optimizer(name, net, 0.1, 0.3, None)
        assert {group['betas'] for group in optimizer.param_groups} == {BETAS}
        assert {group['weight_decay'] for group in optimizer.param_groups} == {0., 0.3}
        assert len(optimizer.param_groups) == 2


@pytest.mark.parametrize('name, device, expected', [
    ('muon', 'cuda', True), ('adamw', 'cpu', True), ('adamw', 'mps', False), ('muon', 'mps', False),
    ('lion', 'cuda', False)])
def test_who_leaves_out_an_update_by_itself(name, device, expected):
    optimizer = build_optimizer(name, nn.Linear(2, 2), 0.1, 0., None)
    assert can_skip(optimizer, torch.device(device)) is expected
