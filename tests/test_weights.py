"""models/weights.py: files of every kind in, and clear words for those that do not fit."""
import pickle
import time

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from conftest import tiny_volo

from models.weights import WeightsError, fetch_published, load_weights, published_tag


@pytest.fixture
def model():
    torch.manual_seed(1)
    return tiny_volo()


@pytest.mark.parametrize('wrap', [
    lambda state: state, lambda state: {'state_dict': state}, lambda state: {'state_dict_ema': state, 'state_dict': {}},
    lambda state: {'model': {f'module.{name}': tensor for name, tensor in state.items()}}])
def test_every_wrapping_loads_with_its_head(tmp_path, model, wrap):
    torch.save(wrap(model.state_dict()), tmp_path / 'w.pth.tar')
    other = tiny_volo()
    done = load_weights(other, tmp_path / 'w.pth.tar')
    assert done == {'loaded': len(model.state_dict()), 'resized': [], 'dropped': []}
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), model.state_dict().values(), strict=True))


def test_safetensors(tmp_path, model):
    safetensors.torch.save_file(model.state_dict(), tmp_path / 'w.safetensors')
    other = tiny_volo()
    load_weights(other, tmp_path / 'w.safetensors')
    assert torch.equal(other.head.weight, model.head.weight)


def test_head_of_other_classes_is_dropped_and_said(model):
    other = tiny_volo(num_classes=7)
    before = other.head.weight.clone()
    assert load_weights(other, model.state_dict())['dropped'] == ['head of 5 classes']
    assert torch.equal(other.head.weight, before) and torch.equal(other.norm.weight, model.norm.weight)


@pytest.mark.parametrize('size', [(96, 96), (48, 80)])
def test_pos_embed_is_resized_as_the_official_code_does(model, size):
    other = tiny_volo(img_size=size)
    assert load_weights(other, model.state_dict())['resized']
    grid = size[0] // 16, size[1] // 16
    expected = F.interpolate(model.pos_embed.permute(0, 3, 1, 2), grid, mode='bicubic', align_corners=False)
    torch.testing.assert_close(other.pos_embed, expected.permute(0, 2, 3, 1).detach(), rtol=0, atol=1e-6)


def test_wrong_contents_are_listed_and_change_nothing(model):
    other = tiny_volo()
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    state = model.state_dict()
    del state['norm.weight']
    state['extra'] = torch.ones(1)
    state['cls_token'] = torch.ones(1, 1, 3)
    with pytest.raises(WeightsError, match=r'norm.weight is missing; extra is unexpected; cls_token is \(1, 1, 3\)'):
        load_weights(other, state)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def test_unreadable_files_get_one_line(tmp_path, model):
    torch.save(model.state_dict(), tmp_path / 'whole.pth')
    files = {'text.pth': b'hello', 'empty.pth': b'', 'cut.pth': (tmp_path / 'whole.pth').read_bytes()[:5000],
             'cut.safetensors': b'\x10\x00\x00\x00\x00\x00\x00\x00{"a"',
             'trap.pth': pickle.dumps(Trap(tmp_path / 'ran'))}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=name) as caught:
            load_weights(model, tmp_path / name)
        assert '\n' not in str(caught.value)
    torch.save({'state_dict': Trap(tmp_path / 'ran')}, tmp_path / 'trap2.pth')
    with pytest.raises(WeightsError, match=r'trap2\.pth'):
        load_weights(model, tmp_path / 'trap2.pth')
    assert not (tmp_path / 'ran').exists()
    with pytest.raises(WeightsError, match='no such file'):
        load_weights(model, tmp_path / 'missing.pth')


def test_hub_is_given_up_quickly(monkeypatch, tmp_path):
    monkeypatch.setattr('models.weights.HUB_PATIENCE', 3)
    monkeypatch.setattr('models.weights._probe', lambda url, answer: time.sleep(60))  # a name server that never answers
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    with pytest.raises(WeightsError, match='no answer.*HF_ENDPOINT'):
        fetch_published('volo_d1', (224, 224), cache_dir=tmp_path)


def test_nearest_published_size():
    assert published_tag('volo_d1', (112, 112)) == 'volo_d1_224.sail_in1k'
    assert published_tag('volo_d1', (384, 320)) == 'volo_d1_384.sail_in1k'
    assert published_tag('volo_d5', (512, 512)) == 'volo_d5_512.sail_in1k'
