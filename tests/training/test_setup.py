"""common/training/setup.py and the optimizer: what has no weight decay, networks other than VOLO."""
import pytest
import torch
from helpers import TINY, build, prepare, run, scene
from PIL import Image

import models
from common.runtime.device import free_device_memory
from common.runtime.errors import UserError
from common.training import setup
from models.cost import training_memory


def test_no_decay_on_norms_biases_and_embeddings(data):
    *_, built = build()
    names = {id(p): name for name, p in built.net.named_parameters()}
    free = [group for group in built.optimizer.param_groups if group['weight_decay'] == 0]
    kept = {names[id(p)] for group in free for p in group['params']}
    shapes = {name: p.ndim for name, p in built.net.named_parameters()}
    assert kept == {name for name, ndim in shapes.items() if ndim == 1} | {'pos_embed', 'cls_token'}


def test_other_networks_of_timm(folder, capsys):
    run(model='test_resnet', model_kwargs={}, epochs=2, img_size='40,50')
    assert 'test_resnet: 0.4 M parameters' in capsys.readouterr().out
    run(model='test_resnet', model_kwargs={}, epochs=3, img_size='40,50', resume='true')
    with pytest.raises(UserError, match='another network'):
        run(model='test_vit', model_kwargs={}, pretrained='out/best.pth', output_dir='vit')


def test_a_rate_of_zero_is_passed_on():
    """Some of timm's networks have stochastic depth unless they are told otherwise."""
    rates = [m.drop_prob for m in models.create_model('swin_tiny_patch4_window7_224', num_classes=2).modules()
             if hasattr(m, 'drop_prob')]
    assert not any(rates)
    models.create_model('vgg11', num_classes=2)  # which has none


def test_the_cost_is_said_at_the_start(folder, capsys):
    run(epochs=1)
    out = capsys.readouterr().out
    assert 'M parameters, 0.00 G multiply-adds an image; a batch of 8 images needs at least 0.0 GiB' in out


def spec_of(**changes):
    return setup.network_spec(prepare(**changes), 2)


def load_of(batch_size, device='cpu', amp_dtype=None, use_dp=True, use_ema=True):
    return setup.Demand(batch_size, torch.device(device), amp_dtype, use_dp, use_ema)


@pytest.mark.parametrize('device, use_dp, batch, where', [
    ('cuda', True, 3, ' on each GPU'), ('cuda', False, 5, ''), ('cpu', True, 5, '')])
def test_the_cost_is_of_what_one_device_holds(monkeypatch, capsys, device, use_dp, batch, where):
    """Five images on two GPUs are three on the first; the copies of the weights are Adam's two and the EMA."""
    asked = []

    def memory(net, *arguments, copies):
        asked.append((*arguments, copies))
        return 3 * 2 ** 29

    monkeypatch.setattr(setup, 'training_memory', memory)
    monkeypatch.setattr(setup, 'multiply_adds', lambda net, size: 1.5e9)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    net = torch.nn.Linear(1000, 1999)
    for use_ema in (True, False):
        load = load_of(5, device, torch.bfloat16, use_dp, use_ema)
        assert setup.work_out_cost(spec_of(), net, load) == 6 * 1.5e9
    assert asked == [((32, 32), batch, torch.bfloat16, 3), ((32, 32), batch, torch.bfloat16, 2)]
    expected = (f'volo_d1: 2.0 M parameters, 1.50 G multiply-adds an image; a batch of {batch} images needs '
                f'at least 1.5 GiB of memory{where}\n')
    assert capsys.readouterr().out == 2 * expected and net.training


def memory_of(batch, **changes):
    return training_memory(spec_of(**changes).create().train(), (32, 32), batch, copies=3)


@pytest.mark.parametrize('changes', [{}, {'grad_checkpointing': 'true'}])
def test_a_batch_is_halved_until_memory_is_enough(monkeypatch, changes):
    """It stays even; the random numbers of the run are those that they would have been."""
    spec = spec_of(**changes)
    for batch, more in ((60, 1.01), (14, 1.05), (2, 0)):
        free, before = more * memory_of(batch, **changes) / setup.MEMORY_SHARE, torch.get_rng_state()
        monkeypatch.setattr(setup, 'free_device_memory', lambda device, free=free: free)
        assert setup.largest_batch(spec, load_of(60)) == batch
        assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(setup, 'WORLD_SIZE', 3)  # a pair for each process
    assert setup.largest_batch(spec, load_of(60)) == 6


def test_checkpointing_leaves_room_for_larger_batches():
    assert memory_of(60, grad_checkpointing='true') < memory_of(60)


def test_a_batch_stays_where_memory_is_unknown(monkeypatch):
    monkeypatch.setattr(setup, 'free_device_memory', lambda device: None)
    assert setup.largest_batch(spec_of(), load_of(60)) == 60
    monkeypatch.setattr(setup, 'free_device_memory', lambda device: 0)
    monkeypatch.setattr(setup, 'training_memory', lambda *args, **kwargs: 1 / 0)
    assert setup.largest_batch(spec_of(), load_of(60)) == 60


@pytest.mark.parametrize('device, free', [('cuda', 123), ('cpu', 456), ('mps', None)])
def test_the_free_memory_is_that_of_the_device(monkeypatch, device, free):
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (123, 1000))
    monkeypatch.setattr('common.runtime.device.free_memory', lambda: 456)
    assert free_device_memory(torch.device(device)) == free


def test_a_cost_that_cannot_be_worked_out_costs_no_run(monkeypatch, capsys):
    def fail(*arguments, **named):
        raise ZeroDivisionError

    monkeypatch.setattr(setup, 'training_memory', fail)
    assert setup.work_out_cost(spec_of(), torch.nn.Linear(1000, 1999), load_of(8)) is None
    assert capsys.readouterr().out == (
        'volo_d1: 2.0 M parameters; its multiply-adds and memory could not be worked out (ZeroDivisionError)\n')


@pytest.mark.parametrize('kind, grey', [('grey', True), ('a trace of colour', True), ('one of them colourful', False)])
def test_grey_images_are_learnt_with_filters_of_brightness(tmp_path, monkeypatch, capsys, kind, grey):
    monkeypatch.chdir(tmp_path)
    for side in ('train', 'val'):
        for number in range(12):
            image = scene(number).convert('L')
            if kind == 'a trace of colour':
                image = Image.merge('RGB', [image, image.point(lambda value: value + 1), image])
            elif kind != 'grey' and number == 11:
                image = scene(number)
            folder = tmp_path / 'data' / side / 'ab'[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f'{number}.png')
    kwargs = {**TINY, 'stem_hidden_dim': 64}
    _, data, state = build(model_kwargs=kwargs)
    assert data.grey is grey and ('the images are grey' in capsys.readouterr().out) == grey
    weight = state.net.patch_embed.conv[0].weight.detach()  # (channels, 3, 7, 7), with some noise
    assert (weight.std(1).mean() < 0.3 * weight.std()) == grey
    torch.save({name: torch.zeros_like(tensor) for name, tensor in state.net.state_dict().items()}, 'zeros.pth')
    _, _, loaded = build(pretrained='zeros.pth', model_kwargs=kwargs)
    assert not loaded.net.patch_embed.conv[0].weight.any()
