"""models/weights.py: files of every kind in, and clear words for those that do not fit."""
import argparse
import codecs
import copy
import pickle
import shlex
import subprocess
import sys
import time
import zipfile

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from helpers import TINY, prepare, tiny_volo
from torch.nn.modules.module import register_module_parameter_registration_hook

import models
from common.runtime.errors import UserError
from common.training import checkpoint
from common.training.setup import build_network, find_weights, network_spec
from models import LoadReport, WeightsError, load_weights, normalisation_of
from models.volo import resize_pos_embed
from models.weights import fetch_published, published_tag

TRANSFORM = {'img_size': [64, 64], 'mean': [0.5] * 3, 'std': [0.2] * 3, 'crop': None, 'interpolation': 'bilinear'}


@pytest.fixture
def model():
    torch.manual_seed(1)
    return tiny_volo()


@pytest.mark.parametrize('wrap', [
    lambda state: state,
    lambda state: {'state_dict': state},
    lambda state: {'state_dict_ema': state, 'state_dict': {}},
    lambda state: {'model': {f'module.{name}': tensor for name, tensor in state.items()}}])
def test_every_wrapping_loads_with_its_head(tmp_path, model, wrap):
    torch.save(wrap(model.state_dict()), tmp_path / 'w.pth.tar')
    other = tiny_volo()
    done = load_weights(other, tmp_path / 'w.pth.tar')
    assert done == LoadReport(len(model.state_dict()), resized=[], dropped=[])
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), model.state_dict().values(), strict=True))


def test_safetensors(tmp_path, model):
    safetensors.torch.save_file(model.state_dict(), tmp_path / 'w.safetensors')
    other = tiny_volo()
    load_weights(other, tmp_path / 'w.safetensors')
    assert torch.equal(other.head.weight, model.head.weight)


def test_head_of_other_classes_is_dropped_and_said(model):
    other = tiny_volo(num_classes=7)
    assert load_weights(other, model.state_dict()).dropped == ['head of 5 classes']
    assert torch.equal(other.norm.weight, model.norm.weight)


@pytest.mark.parametrize('name', ['volo_d1', 'resnet10t', 'tf_efficientnet_lite0'])
def test_a_new_head_gives_all_classes_the_same_probability(name):
    """timm's are so large that the loss would begin far above ln(classes)."""
    kwargs = {'img_size': (64, 64), 'return_dense': True} if name == 'volo_d1' else {}
    loaded = models.create_model(name, num_classes=7, **kwargs)
    new = models.create_model(name, num_classes=12, **kwargs)
    load_weights(new, loaded.state_dict())
    assert not new.eval()(torch.randn(2, 3, 64, 64)).any()


@pytest.mark.parametrize('size', [(24, 24), (12, 20), (7, 7)])
def test_pos_embed_is_resized_as_the_official_code_does(size):
    """F.interpolate(mode='bicubic') of the channels-first grid, from the 14x14 of the published 224 pixels."""
    theirs = timm.create_model('volo_d1_224', num_classes=12, use_aux_head=False)
    model = models.create_model('volo_d1', num_classes=12, img_size=(size[0] * 16, size[1] * 16))
    done = load_weights(model, theirs.state_dict())
    assert done.resized == [f'pos_embed 14x14 to {size[0]}x{size[1]}'] and done.dropped == []
    expected = F.interpolate(theirs.pos_embed.detach().permute(0, 3, 1, 2), size=size, mode='bicubic')
    torch.testing.assert_close(model.pos_embed.detach(), expected.permute(0, 2, 3, 1), rtol=0, atol=1e-6)


def cubic(t, a=-0.75):
    """Keys' kernel with PyTorch's parameter."""
    t = abs(t)
    if t <= 1:
        return (a + 2) * t ** 3 - (a + 3) * t ** 2 + 1
    return a * (t ** 3 - 5 * t ** 2 + 8 * t - 4) if t < 2 else 0.


@pytest.mark.parametrize('size', [(24, 24), (12, 20)])
def test_the_resizing_is_plain_bicubic_interpolation(size):
    """Written out: four neighbours a side at the pixels' centres, the border repeated, no antialias."""
    grid = 0.1 * torch.randn(1, 14, 14, 3, dtype=torch.float64)  # resized in fp32
    matrices = []
    for old, new in zip((14, 14), size, strict=True):
        matrix = torch.zeros(new, old, dtype=torch.float64)
        for i in range(new):
            centre = (i + 0.5) * old / new - 0.5
            for j in range(int(centre // 1) - 1, int(centre // 1) + 3):
                matrix[i, min(max(j, 0), old - 1)] += cubic(centre - j)
        matrices.append(matrix)
    expected = torch.einsum('yi,xj,bijc->byxc', *matrices, grid)
    torch.testing.assert_close(resize_pos_embed(grid, size), expected, rtol=0, atol=1e-6)


def test_a_file_without_a_head_is_said(model):
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith('head')}
    assert load_weights(tiny_volo(), state).dropped == ['head: none in the file']
    state['head.weight'] = model.head.weight
    with pytest.raises(WeightsError, match='head.bias is missing'):
        load_weights(tiny_volo(), state)
    dense = tiny_volo(return_dense=True)
    assert load_weights(dense, model.state_dict()).dropped == ['aux_head: none in the file']
    assert torch.equal(dense.head.weight, model.head.weight)


def without_counts(state):
    return {name: tensor for name, tensor in state.items() if not name.endswith('num_batches_tracked')}


@pytest.mark.parametrize('name', ['volo_d1', 'test_resnet'])
def test_batch_counts_are_optional_as_they_are_for_pytorch(name):
    """Old versions of PyTorch saved none, and converters leave them out: they start at 0."""
    kwargs = {'num_classes': 5, 'img_size': 64, **(TINY if name == 'volo_d1' else {})}
    theirs = models.create_model(name, **kwargs)
    for tensor in theirs.state_dict().values():
        tensor += 1
    state = without_counts(theirs.state_dict())
    missing = len(theirs.state_dict()) - len(state)
    ours = models.create_model(name, **kwargs)
    done = load_weights(ours, state)
    assert missing > 0 and done == LoadReport(len(state), resized=[], dropped=[], counted_anew=missing)
    for key, tensor in ours.state_dict().items():
        assert torch.equal(tensor, state[key]) if key in state else tensor == 0


def test_batch_counts_that_a_network_does_not_keep_are_left_out(model):
    frozen = copy.deepcopy(model)
    for layer in frozen.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.num_batches_tracked = None
    assert len(frozen.state_dict()) < len(model.state_dict())
    assert load_weights(frozen, model.state_dict()).loaded == len(frozen.state_dict())
    state = model.state_dict()
    state['norm.num_batches_tracked'] = torch.tensor(0)  # of no layer with statistics
    with pytest.raises(WeightsError, match='norm.num_batches_tracked is unexpected'):
        load_weights(model, state)


def test_statistics_of_batches_are_not_optional(model):
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith('running_var')}
    with pytest.raises(WeightsError, match='running_var is missing'):
        load_weights(model, state)


def test_a_checkpoint_without_batch_counts_is_restored(model):
    saved = {'model': 'volo_d1', 'model_kwargs': TINY, 'classes': list('abcde'), 'transform': TRANSFORM,
             'state_dict': without_counts(model.state_dict())}
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(models.restore_model(saved).eval()(images), model.eval()(images))


def test_missing_batch_counts_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cfg = prepare()
    spec = network_spec(cfg, 2)
    torch.save(without_counts(spec.create().state_dict()), 'w.pth')
    built = build_network(spec, ['a', 'b'], find_weights('w.pth', cfg.MODEL, cfg.IMG_SIZE))
    printed = capsys.readouterr().out
    assert 'weights: started at 0: 3 counts of batches (num_batches_tracked), which the file lacks' in printed
    assert f'weights: loaded  {built.provenance.loaded} tensors' in printed


def test_the_same_network_at_another_size_is_called_that():
    state = models.create_model('test_vit', img_size=96).state_dict()
    with pytest.raises(WeightsError, match='of another image size: pos_embed is'):
        load_weights(models.create_model('test_vit', img_size=64), state)


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


def test_another_architecture_is_refused_in_one_line(tmp_path):
    for name in ('volo_d2', 'test_vit'):
        torch.save(models.create_model(name, img_size=160).state_dict(), tmp_path / 'w.pth')
        with pytest.raises(WeightsError, match='of another network: .* and [0-9]+ more') as caught:
            load_weights(models.create_model('volo_d1', img_size=32), tmp_path / 'w.pth')
        assert len(str(caught.value)) < 300 and '\n' not in str(caught.value)


def test_another_network_of_timm_keeps_or_drops_its_head(tmp_path):
    before = models.create_model('test_resnet', num_classes=12)
    torch.save({'state_dict': before.state_dict()}, tmp_path / 'w.pth')
    for classes, dropped in ((12, []), (5, ['fc of 12 classes'])):
        after = models.create_model('test_resnet', num_classes=classes)
        assert load_weights(after, tmp_path / 'w.pth').dropped == dropped
        assert torch.equal(after.conv1[0].weight, before.conv1[0].weight)
        assert torch.equal(after.fc.weight, before.fc.weight) if classes == 12 else len(after.fc.weight) == 5


def test_a_namespace_in_the_file_is_refused_with_the_line_that_takes_it_out(tmp_path, monkeypatch, model):
    path = tmp_path / "an old one's.pth.tar"
    torch.save({'args': argparse.Namespace(lr=1), 'epoch': 3, 'state_dict': model.state_dict()}, path)
    with pytest.raises(WeightsError, match='argparse.Namespace.*this command') as caught:
        load_weights(model, path)
    python, option, code, *files = shlex.split(str(caught.value).partition('safely: ')[2])
    assert (python, option) == ('python', '-c')
    subprocess.run([sys.executable, option, code, *files], check=True)
    assert load_weights(tiny_volo(), files[1]).loaded == len(model.state_dict())

    def run_here():
        """Run the same code without the seconds that a process takes to import torch."""
        monkeypatch.setattr(sys, 'argv', ['-c', *files])
        try:
            exec(code, {})
        finally:
            torch.serialization.clear_safe_globals()

    torch.save({'args': argparse.Namespace(lr=1), 'model': model.state_dict()}, path)
    run_here()
    assert load_weights(tiny_volo(), files[1]).loaded == len(model.state_dict())
    torch.save({'args': argparse.Namespace(lr=Trap(tmp_path / 'ran')), 'state_dict': model.state_dict()}, path)
    with pytest.raises(pickle.UnpicklingError):
        run_here()
    assert not (tmp_path / 'ran').exists()


def test_a_head_of_twelve_classes_survives_every_way(tmp_path):
    """The official loader drops head and aux_head whenever the number of classes is not 1000."""
    model = tiny_volo(num_classes=12, return_dense=True)
    state = model.state_dict()
    saved = {'model': 'volo_d1', 'model_kwargs': {**TINY, 'return_dense': True}, 'classes': list('abcdefghijkl'),
             'transform': TRANSFORM, 'state_dict': state}
    files = {'plain.pth': state, 'official.pth.tar': {'state_dict': {f'module.{k}': v for k, v in state.items()}},
             'ema.pth.tar': {'state_dict_ema': state, 'state_dict': {}}, 'best.pth': saved,
             'last.pth': {**saved, 'state_dict_ema': state}, 'no_ema.pth': {**saved, 'state_dict_ema': None}}
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    safetensors.torch.save_file(state, tmp_path / 'w.safetensors')
    for path in sorted(tmp_path.iterdir()):
        other = tiny_volo(num_classes=12, return_dense=True)
        assert load_weights(other, path).dropped == [], path.name
        assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items()), path.name
    restored = models.restore_model(models.read_file(tmp_path / 'best.pth'))
    assert torch.equal(restored.head.weight, model.head.weight)
    assert torch.equal(restored.aux_head.weight, model.aux_head.weight)


SHARED = [[[[1] * 100] * 100] * 100] * 100  # a hundred million numbers, four lists in memory and in a file


@pytest.mark.parametrize('change, words', [
    ({'classes': ['a']}, 'of another number of classes: head'), ({'model_kwargs': None}, 'not a complete checkpoint'),
    ({'state_dict': None}, 'wrong with its state_dict'), ({'state_dict': dict.fromkeys(range(9))}, 'no state dict'),
    ({'model': 'volo_d9'}, 'volo_d9'), ({'model': 'hf-hub:someone/something'}, 'no network'),
    ({'transform': {}}, 'img_size'),
    ({'transform': {**TRANSFORM, 'img_size': [64, 64.5]}}, 'wrong with its img_size'),
    ({'transform': {**TRANSFORM, 'img_size': [10 ** 9] * 2}}, 'wrong with its img_size'),
    ({'transform': {**TRANSFORM, 'img_size': [2 ** 14] * 2}}, 'wrong with its img_size'),
    ({'transform': {**TRANSFORM, 'img_size': [2 ** 12] * 2, 'crop': 0.5}}, 'wrong with its img_size'),
    ({'transform': {**TRANSFORM, 5: 'more'}}, 'wrong with its transform'),
    ({'transform': {**TRANSFORM, 'std': [1, 1, 0]}}, 'wrong with its std'),
    ({'transform': {**TRANSFORM, 'mean': [float('nan')] * 3, 'crop': 0}}, 'wrong with its mean, crop'),
    ({'classes': list('abcda')}, 'wrong with its classes'), ({'classes': [1, 2, 3, 4, 5]}, 'wrong with its classes'),
    ({'model_kwargs': {**TINY, 'layers': (10 ** 4, 1, 1, 1)}}, 'of a smaller network'),
    ({'model_kwargs': {**TINY, 'embed_dims': (2 * 10 ** 6, 4 * 10 ** 6)}}, 'wrong with its model_kwargs'),
    ({'model_kwargs': {**TINY, 'embed_dims': (16000, 16000)}}, 'of a smaller network'),
    ({'model_kwargs': {**TINY, 'layers': (9999, 1, 1, -9999)}}, 'layers .9999'),
    ({'model_kwargs': {**TINY, 'layers': (1, 1, 1, 1, *[0] * 300)}}, 'wrong with its model_kwargs'),
    ({'model_kwargs': {str(key): SHARED for key in range(100)}}, 'wrong with its model_kwargs'),
    ({'model_kwargs': {'layers': [[[[[[1]]]]]]}}, 'wrong with its model_kwargs'),
    ({'classes': ['a\ud800', *'bcde']}, 'wrong with its classes'),
    ({'classes': ['a\0', *'bcde']}, 'wrong with its classes'),
    ({'state_dict': {'head.weight': torch.ones(1).expand(2 ** 40)}}, 'no state dict'),
    ({'model': 'test_vit', 'model_kwargs': {'depth': 10 ** 6}}, 'wrong with its model_kwargs'),
    ({'classes': ['a' * 300, *'bcde']}, 'wrong with its classes'),
    ({'model_kwargs': {**TINY, 'checkpoint_path': '/etc/passwd'}}, 'checkpoint_path is no setting'),
    ({'model_kwargs': {**TINY, 'nonsense': 1}}, 'nonsense'), ({'model': 5}, 'not a complete checkpoint'),
    ({'transform': {**TRANSFORM, 'img_size': [64]}}, 'img_size')])
def test_a_checkpoint_that_contradicts_itself_is_refused(model, change, words):
    saved = {'model': 'volo_d1', 'model_kwargs': TINY, 'classes': list('abcde'), 'transform': TRANSFORM,
             'state_dict': model.state_dict()}
    models.restore_model(saved)
    with pytest.raises(WeightsError, match=words):
        models.restore_model({**saved, **change})
    with pytest.raises(WeightsError, match='not a checkpoint of train.py'):
        models.restore_model(model.norm.weight)


def test_a_network_that_gets_its_weights_gets_no_initial_ones(model, monkeypatch):
    """On the meta device that took half a second, each time that test.py was started."""
    monkeypatch.setattr('models.volo.init_weights', None)
    restored = models.restore_model({'model': 'volo_d1', 'model_kwargs': TINY, 'classes': list('abcde'),
                                     'transform': TRANSFORM, 'state_dict': model.state_dict()})
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in restored.state_dict().items())


def test_a_network_far_larger_than_its_weights_gets_no_memory(model):
    """A checkpoint of 2 kB may ask for any depth: construction ends on the meta device, where shapes cost nothing."""
    devices = []
    handle = register_module_parameter_registration_hook(lambda net, name, parameter: devices.append(
        None if parameter is None else parameter.device.type))
    saved = {'model': 'test_vit', 'model_kwargs': {'depth': 600}, 'classes': list('abcde'), 'transform': TRANSFORM,
             'state_dict': {'head.weight': torch.zeros(5, 64)}}
    try:
        with pytest.raises(WeightsError, match='of a smaller network'):
            models.restore_model(saved)
    finally:
        handle.remove()
    assert 0 < len(devices) < 20 and set(devices) <= {'meta', None}


@pytest.mark.parametrize('name', ['test_vit', 'swin_tiny_patch4_window7_224', 'levit_128s'])
def test_networks_of_timm_are_restored_with_the_tables_that_no_state_dict_holds(name):
    torch.manual_seed(0)
    size = 224 if 'test' not in name else 64
    kwargs = {} if 'test' not in name else {'depth': 2}
    net = models.create_model(name, num_classes=3, img_size=(size, size), **kwargs).eval()
    saved = {'model': name, 'model_kwargs': kwargs, 'classes': list('abc'),
             'transform': {**TRANSFORM, 'img_size': [size, size]}, 'state_dict': net.state_dict()}
    images = torch.randn(1, 3, size, size)
    with torch.inference_mode():
        assert torch.equal(models.restore_model(saved).eval()(images), net(images))


def test_similar_names_are_suggested_once():
    for wrong, near in (('volo_d6', 'volo_d1'), ('VOLO-D1', 'volo_d1'), ('resnet5', 'resnet50')):
        with pytest.raises(ValueError, match='there is no network') as error:
            models.default_cfg(wrong)
        names = str(error.value).partition('perhaps ')[2].partition(':')[0].split(', ')
        assert near in names and len(set(names)) == len(names) <= 3


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


class Growing:
    def __init__(self, call, *arguments):
        self.call = call
        self.arguments = arguments

    def __reduce__(self):
        return self.call, self.arguments


def compressed(path):
    with zipfile.ZipFile(path) as old:
        contents = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as new:
        for name, content in contents.items():
            new.writestr(name, content)


def shared(path):
    """Let every record lie where the largest one does."""
    with zipfile.ZipFile(path, 'a') as file:
        largest = max(file.infolist(), key=lambda record: record.file_size)
        for number in range(3):
            again = copy.copy(largest)
            again.filename = f'{largest.filename}{number}'
            file.filelist.append(again)
            file.NameToInfo[again.filename] = again
        file._didModify = True


def ambiguous(path):
    """Put an archive with a list of its own behind another one, for programs that search from the end."""
    content = path.read_bytes()
    path.write_bytes(content + content)


def commented(path):
    with zipfile.ZipFile(path, 'a') as file:
        file.comment = b'PK'


@pytest.mark.parametrize('change', [compressed, shared, ambiguous, commented])
def test_a_file_that_is_larger_than_it_looks_is_refused_unread(tmp_path, monkeypatch, change):
    path = tmp_path / 'w.pth'
    torch.save({'state_dict': {'w': torch.zeros(10 ** 4)}}, path)
    models.read_file(path)
    change(path)
    monkeypatch.setattr(torch, 'load', None)
    with pytest.raises(WeightsError, match=r'w\.pth: its records are compressed or not as PyTorch writes them'):
        models.read_file(path)
    assert not checkpoint.is_whole(path)


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('value', [Growing(bytearray, 10), Growing(codecs.encode, 'abc', 'hex'), b'abc'])
def test_what_makes_many_bytes_of_few_is_refused_unread(tmp_path, monkeypatch, value, legacy):
    torch.save({'junk': value}, tmp_path / 'w.pth', _use_new_zipfile_serialization=not legacy)
    monkeypatch.setattr(torch, 'load', None)
    with pytest.raises(WeightsError, match='it holds bytes, made by a pickled (bytearray|encode), and only tensors'):
        models.read_file(tmp_path / 'w.pth')


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
    torch.save(model, tmp_path / 'module.pth')
    with zipfile.ZipFile(tmp_path / 'other.pth', 'w') as file:
        file.writestr('a.txt', 'hello')
    for name, reason in (('module.pth', r'it holds a pickled models\.volo\.VOLO'), ('empty.pth', 'it is empty'),
                         ('other.pth', 'a zip archive of something else'), ('text.pth', 'PyTorch did not write it')):
        with pytest.raises(WeightsError, match=reason) as caught:
            load_weights(model, tmp_path / name)
        assert 'weights_only' not in str(caught.value)
    with pytest.raises(WeightsError, match='no such file'):
        load_weights(model, tmp_path / 'missing.pth')


def test_hub_is_given_up_quickly(monkeypatch, tmp_path):
    monkeypatch.setattr('models.weights.HUB_PATIENCE', 3)
    # A name server may never answer.
    monkeypatch.setattr('models.weights.ask_hub', lambda url, answers: time.sleep(60))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    with pytest.raises(WeightsError, match='no answer.*HF_ENDPOINT'):
        fetch_published('volo_d1', (224, 224), cache_dir=tmp_path)


def test_published_weights_are_fetched_and_fitted(monkeypatch):
    """The hub's answer replaced by timm's own network: 1000 classes, both heads, 224 pixels."""
    theirs, asked = timm.create_model('volo_d1_224').state_dict(), []
    monkeypatch.setattr('models.weights.reach_hub', lambda repo, cache_dir: asked.append(repo))
    monkeypatch.setattr('models.weights.load_state_dict_from_hf', lambda repo, **kwargs: asked.append(repo) or theirs)
    tag, state = models.fetch_weights('volo_d1', (288, 288))
    assert tag == 'volo_d1_224.sail_in1k' and asked == [f'timm/{tag}'] * 2
    model = models.create_model('volo_d1', num_classes=12, img_size=288)
    done = load_weights(model, state)
    assert done == LoadReport(len(theirs) - 4, resized=['pos_embed 14x14 to 18x18'],
                              dropped=['head of 1000 classes', 'aux_head of 1000 classes'])
    assert torch.equal(model.norm.weight, theirs['norm.weight'])
    whole = models.volo_d1(pretrained=True, return_dense=True, num_classes=1000)
    assert torch.equal(whole.aux_head.weight, theirs['aux_head.weight'])


def test_published_weights_of_another_network(monkeypatch):
    monkeypatch.setattr('models.factory.reach_hub', lambda repo: None)
    real = timm.create_model
    monkeypatch.setattr('timm.create_model', lambda name, pretrained, **size: real(name, **size))
    tag, state = models.fetch_weights('test_vit', (96, 64))
    assert tag == 'test_vit.r160_in1k'
    monkeypatch.undo()
    model = models.create_model('test_vit', (96, 64), num_classes=3)
    assert load_weights(model, state).dropped == ['head of 1000 classes']


def test_nearest_published_size():
    assert published_tag('volo_d1', (112, 112)) == 'volo_d1_224.sail_in1k'
    assert published_tag('volo_d1', (384, 320)) == 'volo_d1_384.sail_in1k'
    assert published_tag('volo_d5', (512, 512)) == 'volo_d5_512.sail_in1k'


@pytest.mark.parametrize('content', [
    'other.pth', [1], torch.ones(3), {1: torch.ones(3)}, {'a': torch.ones(3).to_sparse()},
    {'a': torch.ones(3, device='meta')}, {'state_dict': 'other.pth'}])
def test_files_that_hold_something_else_than_weights(tmp_path, monkeypatch, model, content):
    """A text, in particular, is not the path of another file."""
    monkeypatch.chdir(tmp_path)
    torch.save(model.state_dict(), 'other.pth')
    torch.save(content, 'w.pth')
    cfg = prepare(pretrained='w.pth', img_size=64)
    with pytest.raises(UserError, match='no state dict|not a readable file'):
        weights = find_weights(cfg.PRETRAINED, cfg.MODEL, cfg.IMG_SIZE)
        build_network(network_spec(cfg, 5), list('abcde'), weights)


def test_a_normalisation_that_is_none_is_not_taken():
    for transform in ({'mean': 'abc', 'std': [1] * 3}, {'mean': [0] * 3, 'std': [0] * 3}, {'mean': [float('nan')] * 3,
                      'std': [1] * 3}, {'mean': [0.5] * 2, 'std': [1] * 3}, 'text', None):
        assert normalisation_of({'transform': transform}) is None


def save_best(folder, **kwargs):
    """A best.pth of volo_d1 at 64 pixels with 12 classes. Returns (its path, the network)."""
    torch.manual_seed(0)
    net = models.create_model('volo_d1', img_size=64, num_classes=12, **kwargs).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    checkpoint.save(folder / 'best.pth', {'model': 'volo_d1', 'model_kwargs': kwargs, 'classes': list('abcdefghijkl'),
                                          'transform': TRANSFORM, 'state_dict': net.state_dict()})
    return folder / 'best.pth', net


def test_best_pth_loads_in_plain_timm(tmp_path):
    """With img_size, num_classes and use_aux_head as in training, in a process that does not know models/."""
    images = torch.randn(2, 3, 64, 64)
    torch.save(images, tmp_path / 'images.pt')
    nets = {}
    for dense in (False, True):
        folder = tmp_path / str(dense)
        folder.mkdir()
        _, nets[dense] = save_best(folder, **({'return_dense': True} if dense else {}))
    code = """
import timm, torch
images = torch.load('images.pt')
for dense in (False, True):
    net = timm.create_model('volo_d1_224', num_classes=12, img_size=64, use_aux_head=dense,
                            checkpoint_path=f'{dense}/best.pth').eval()
    torch.save(net(images).detach(), f'{dense}/logits.pt')
"""
    subprocess.run([sys.executable, '-c', code], check=True, cwd=tmp_path)
    for dense, net in nets.items():
        with torch.inference_mode():
            assert (torch.load(tmp_path / f'{dense}/logits.pt') - net(images)).abs().max() < 1e-4


def test_best_pth_has_the_official_loaders_format(tmp_path):
    """What the official load_pretrained_weights does for num_classes=1000: it takes `state_dict` out of the file, cuts
    `module.` off, and loads strictly. The published names and shapes are those of timm's port."""
    path, net = save_best(tmp_path, return_dense=True)
    content = torch.load(path, map_location='cpu')
    state = {name.removeprefix('module.'): tensor for name, tensor in content['state_dict'].items()}
    official = timm.create_model('volo_d1_224', num_classes=12, img_size=64, use_aux_head=True).eval()
    official.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert (official(images) - net(images)).abs().max() < 1e-4
