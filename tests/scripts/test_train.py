"""train.py in the same process: what it refuses and writes, which pictures and weights it takes, that it learns."""
import csv
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, build, draw_folder, read_json, result, run
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import models
import train
from common.runtime.errors import UserError


def test_everything_is_written(folder, tmp_path):
    start = time.perf_counter()
    run()
    elapsed = time.perf_counter() - start
    names = {path.name for path in (tmp_path / 'out').iterdir()}
    assert names - {'.lock'} == {
        'best.pth', 'last.pth', 'last_before.pth', 'loss.png', 'acc.png', 'lr.png', 'confusion.png',
        'calibration.png', 'report.html', 'report.txt', 'report.json', 'suspects.csv', 'result.json', 'log.csv',
        'class.json'}
    rows = list(csv.DictReader(Path('out/log.csv').read_text(encoding='utf-8-sig').splitlines()))
    assert [row['epoch'] for row in rows] == ['1', '2'] and float(rows[1]['lr']) < float(rows[0]['lr'])
    assert all(float(row['seconds']) > 0 for row in rows) and sum(float(row['seconds']) for row in rows) < elapsed
    last, best = (torch.load(f'out/{name}.pth', weights_only=True) for name in ('last', 'best'))
    assert {'state_dict', 'state_dict_ema', 'optimizer', 'scheduler', 'scaler', 'classes', 'transform',
            'settings', 'history'} <= last.keys()
    assert last['classes'] == best['classes'] == read_json('out/class.json') == ['a', 'b']
    assert result()['finished'] and result()['settings']['IMG_SIZE'] == [32, 32]


@pytest.mark.parametrize('better', ['raw', 'ema'])
def test_best_holds_the_better_weights(data, monkeypatch, better):
    real = train.evaluate

    def evaluate(*arguments):
        return {which: {**found, 'acc1': 60. if which == better else 40.}
                for which, found in real(*arguments).items()}

    monkeypatch.setattr(train, 'evaluate', evaluate)
    run(epochs=1)
    last, best = (torch.load(f'out/{name}.pth', weights_only=True) for name in ('last', 'best'))
    temperature = last['history'][0][f'{better}_temperature']
    balanced = last['history'][0][f'{better}_balanced_accuracy']
    assert best['best'] == {'epoch': 1, 'weights': better, 'acc1': 60., 'balanced_accuracy': balanced,
                            'temperature': temperature}
    chosen = last['state_dict_ema' if better == 'ema' else 'state_dict']
    assert all(torch.equal(chosen[name], tensor) for name, tensor in best['state_dict'].items())
    assert not all(torch.equal(last['state_dict'][name], tensor) for name, tensor in last['state_dict_ema'].items())


@pytest.mark.parametrize('dtype, scaled', [(torch.bfloat16, False), (torch.float16, True)])
def test_mixed_precision_is_on_and_the_norm_is_of_the_true_gradients(data, monkeypatch, dtype, scaled):
    seen = []
    monkeypatch.setattr(train.devices, 'choose_amp_dtype', lambda device: dtype)
    real = torch.nn.functional.linear

    def linear(*arguments):
        out = real(*arguments)
        if out.requires_grad:  # not the forward pass that tries out the network, nor validation
            seen.append(out.dtype)
        return out

    monkeypatch.setattr(torch.nn.functional, 'linear', linear)
    run(epochs=1)
    assert set(seen) == {dtype}
    norm = result()['last']['grad_norm']
    last = torch.load('out/last.pth', weights_only=True)
    assert bool(last['scaler']) == scaled
    run(epochs=1, use_amp='false', output_dir='single')
    single = read_json('single/result.json')['last']['grad_norm']
    assert 0.7 < norm / single < 1.4  # a scaled one would be some 60,000 times larger
    run(epochs=2, resume='true', use_amp='false')  # resumed on a processor without that precision
    assert result()['finished']


def test_training_accuracy_counts_pictures_with_one_label(data):
    for smoothing in (0, 0.1):
        run(epochs=1, smoothing=smoothing, mixup_prob=0)
        assert result()['last']['train_acc1'] is not None


def test_an_earlier_runs_checkpoints_are_kept_once(data, tmp_path, capsys):
    run(epochs=1)
    before = Path('out/best.pth').read_bytes()
    with pytest.raises(UserError):
        run(epochs=1, data_dir='nowhere')
    assert Path('out/best.pth').read_bytes() == before
    run(epochs=1, seed=7)
    assert Path('out/previous_best.pth').read_bytes() == before != Path('out/best.pth').read_bytes()
    words = 'in place of the one from the run before that'
    out = capsys.readouterr().out
    assert 'previous_best.pth' in out and words not in out
    run(epochs=1, seed=8)
    assert f'out/best.pth of an earlier run is now previous_best.pth, {words}' in capsys.readouterr().out


@pytest.mark.parametrize('changes, words', [
    ({'data_dir': 'nowhere'}, 'makedata.py'), ({'batch_size': 64}, '20 training images but BATCH_SIZE = 64'),
    ({'batch_size': 7}, 'BATCH_SIZE = 7 must be even'), ({'img_size': 50}, 'IMG_SIZE = 50'), ({'epochs': 0}, 'EPOCHS'),
    ({'img_size': '32,40'}, 'IMG_SIZE'), ({'model': 'volo_d7'}, 'volo_d7'), ({'lr': 0}, 'LR'),
    ({'cutout': 2}, 'CUTOUT'), ({'model_kwargs': {'nonsense': 1}}, 'nonsense'),
    ({'pretrained': 'gone.pth'}, 'gone.pth'), ({'normalisation': '((0, 0, 0),)'}, 'NORMALISATION'),
    ({'normalisation': '((0, 0, 0), (1, 1, 0))'}, 'NORMALISATION'),
    ({'resume': 'true'}, 'last.pth'),
    ({'output_dir': 'data/train/a/000.png'}, 'OUTPUT_DIR'),
    ({'warmup': 1}, 'WARMUP'), ({'num_workers': 'many'}, 'NUM_WORKERS'),
    ({'seed': -1}, 'SEED'), ({'view': 'below'}, "VIEW = 'below': choose 'upright'"),
    ({'model_kwargs': {'img_size': 64}}, 'MODEL_KWARGS'), ({'model': 'resnet5'}, 'resnet5.*perhaps .*resnet50'),
    ({'model': 'resnet18.nothing'}, 'resnet18.nothing'), ({'model_kwargs': {'pretrained': True}}, 'pretrained'),
    ({'model': 'volo_d1.sail_in1k'}, 'volo_d1.sail_in1k'),
    ({'token_label': 'true'}, 'TOKEN_LABEL .* set MIXUP_PROB = 0'),
    ({'token_label': 'true', 'mixup_prob': 0, 'model': 'resnet18', 'model_kwargs': {}}, 'TOKEN_LABEL: resnet18'),
    ({'accumulate_steps': 0}, 'ACCUMULATE_STEPS'), ({'crop': 5}, 'CROP'),
    ({'normalisation': 'imagenet'}, 'NORMALISATION'), ({'normalisation': 'weights'}, 'no weights are loaded'),
    ({'model': 'vgg11', 'model_kwargs': {}, 'drop_path': 0.1}, 'set DROP_PATH = 0, vgg11 has none'),
    ({'model': 'test_resnet', 'model_kwargs': {'layers': [1]}}, 'MODEL_KWARGS.*test_resnet'),
    ({'model': 'vit_base_patch16_224_in21k', 'model_kwargs': {}}, 'list_models'),
    ({'model': 'vit_tiny_patch16_224', 'model_kwargs': {'global_pool': ''}}, 'is no classifier, it gives'),
    ({'model_kwargs': {'num_heads': (5, 4)}}, 'num_heads'), ({'model_kwargs': {'embed_dims': (48,)}}, 'embed_dims'),
    ({'model': 'levit_128s', 'model_kwargs': {}, 'batch_size': 1, 'mixup_prob': 0}, 'BATCH_SIZE = 1: too few'),
    ({'time_budget': 0}, 'TIME_BUDGET'), ({'augmentation': 2}, 'AUGMENTATION'),
    ({'augmentation': 'much'}, 'AUGMENTATION'),
    ({'validate_every': 0}, 'VALIDATE_EVERY = 0: give a number of epochs'),
    ({'use_gpu': 'mps'}, "USE_GPU = 'mps': choose 'auto', True or False"),
    ({'model': 'inception_v3', 'model_kwargs': {}}, r'takes no images of \(32, 32\) pixels \(IMG_SIZE\): Calculated'),
    ({'model': 'inception_v3', 'model_kwargs': {}, 'img_size': 96, 'grad_checkpointing': 'true'},
     'GRAD_CHECKPOINTING: inception_v3')])
def test_mistakes_are_named(folder, changes, words):
    with pytest.raises(UserError, match=words):
        run(**changes)


def test_classes_of_train_and_val_must_agree(data):
    draw_folder(data / 'val', {'c': 1})
    with pytest.raises(UserError, match='c is extra'):
        run()
    shutil.rmtree(data / 'val' / 'c')
    (data / 'train' / 'empty').mkdir()
    with pytest.raises(UserError, match='empty'):
        run()


def test_sides_may_have_other_names_and_what_is_left_out_is_said(data, capsys):
    """A set that somebody else has split, without split.csv and mean_std.json."""
    (data / 'train').rename(data / 'Training')
    (data / 'val').rename(data / 'valid')
    (data / 'Training' / 'a' / 'IMG_1').write_text('')
    (data / 'valid' / '@eaDir').mkdir()
    run(epochs=1)
    out = capsys.readouterr().out
    assert 'left out of data/Training: 1 without an ending' in out and 'left out of data/valid: 1 @eaDir/' in out
    assert result()['finished']


def test_bad_pictures_are_left_out_before_the_first_epoch(data, capsys):
    (data / 'train' / 'a' / 'text.jpg').write_text('no picture')
    run(epochs=1)
    out = capsys.readouterr().out
    assert 'left out: data/train/a/text.jpg' in out and out.index('left out') < out.index('epoch 1/1')


def test_a_class_without_a_readable_picture_is_refused(data):
    for path in (data / 'train' / 'a').iterdir():
        path.write_text('no picture')
    with pytest.raises(UserError, match='train/a: none of its files'):
        run()


def test_mean_std_json_is_picked_up_and_doubted(data, capsys):
    found = {'mean': [.1, .2, .3], 'std': [.4, .5, .6], 'classes': ['a', 'b'], 'images': 18, 'data_dir': 'data1'}
    Path('mean_std.json').write_text(json.dumps(found))
    run(epochs=1)
    assert result()['transform']['mean'] == [.1, .2, .3] and 'computed on 18 images' in capsys.readouterr().out
    Path('mean_std.json').write_text(json.dumps({**found, 'classes': ['x']}))
    run(epochs=1)
    assert 'other classes' in capsys.readouterr().out
    run(epochs=1, normalisation='((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))')
    assert result()['transform']['mean'] == [.5, .5, .5]
    Path('mean_std.json').write_text('damaged')
    with pytest.raises(UserError, match=r'mean_std\.json is of no use'):
        run(epochs=1)


def test_auto_pretrained_goes_on_loudly_and_a_path_is_loaded(data, monkeypatch, capsys):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.try_to_load_from_cache', lambda *args, **kwargs: None)
    run(epochs=1, pretrained='auto')
    assert 'NO PRETRAINED WEIGHTS' in capsys.readouterr().out and result()['provenance']['source'] == 'scratch'
    with pytest.raises(UserError, match='PRETRAINED = True'):
        run(epochs=1, pretrained='true')
    run(epochs=1, pretrained='out/best.pth', output_dir='out2', img_size=48)
    pretrained = read_json('out2/result.json')['provenance']
    assert pretrained['source'] == 'out/best.pth' and pretrained['resized'] == ['pos_embed 2x2 to 3x3']
    assert 'other classes' not in capsys.readouterr().out
    (data / 'train' / 'a').rename(data / 'train' / 'c')
    (data / 'val' / 'a').rename(data / 'val' / 'c')
    run(epochs=1, pretrained='out/best.pth', output_dir='out2')
    assert 'the head comes along, though it was trained on other classes' in capsys.readouterr().out


def test_normalisation_follows_the_weights(data):
    """ImageNet's for the published ones, the checkpoint's own for ours; NORMALISATION overrules it."""
    found = {'mean': [.1, .2, .3], 'std': [.4, .5, .6], 'classes': ['a', 'b'], 'images': 18, 'data_dir': 'data1'}
    Path('mean_std.json').write_text(json.dumps(found))
    run(epochs=1)
    Path('mean_std.json').write_text(json.dumps({**found, 'mean': [.7, .8, .9]}))
    torch.save(models.create_model('volo_d1', img_size=32, num_classes=2, **TINY).state_dict(), 'plain.pth')
    for changes, mean in (({'pretrained': 'out/best.pth'}, [.1, .2, .3]),
                          ({'pretrained': 'plain.pth'}, [.485, .456, .406]),
                          ({'pretrained': 'plain.pth', 'normalisation': 'data'}, [.7, .8, .9]), ({}, [.7, .8, .9]),
                          ({'pretrained': 'plain.pth', 'normalisation': '((.5, .5, .5), (.2, .2, .2))'}, [.5, .5, .5])):
        run(epochs=1, output_dir='next', **changes)
        assert read_json('next/result.json')['transform']['mean'] == mean
    # The weights are not read again.
    run(epochs=2, output_dir='next', normalisation='((.5, .5, .5), (.2, .2, .2))', resume='true')


@pytest.mark.parametrize('extra', [{}, {'grad_checkpointing': 'true', 'accumulate_steps': 2}])
def test_token_labels_train_and_predict(data, extra):
    common = {'token_label': 'true', 'mixup_prob': 0, **extra}
    run(epochs=1, **common)
    last = torch.load('out/last.pth', weights_only=True)
    assert 'aux_head.weight' in last['state_dict'] and last['model_kwargs']['mix_token']
    assert last['history'][0]['train_acc1'] is not None
    with pytest.raises(UserError, match='TOKEN_LABEL'):
        run(epochs=2, resume='true')
    with pytest.raises(UserError, match='raise EPOCHS'):
        run(epochs=1, resume='true', **common)
    net = models.restore_model(models.read_file('out/best.pth'))
    assert net.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 2)


def test_token_labels_are_learnt_from(data):
    """Without the loss on tokens the aux head would stay as it was: there is no weight decay here."""
    torch.manual_seed(42)
    *_, built = build(token_label='true', mixup_prob=0)
    start = {name: value.clone() for name, value in built.net.state_dict().items()}
    run(token_label='true', mixup_prob=0, epochs=1, weight_decay=0, lr=1e-2)
    last = torch.load('out/last.pth', weights_only=True)['state_dict']
    for name in ('aux_head.weight', 'head.weight', 'network.2.0.attn.qkv.weight'):
        assert (last[name] - start[name]).abs().max() > 1e-3, name


def test_a_single_picture_a_step(data):
    run(batch_size=1, mixup_prob=0, epochs=1, accumulate_steps=4, img_size='32,48')
    assert result()['finished'] and result()['transform']['img_size'] == [32, 48]


def test_crop_and_interpolation_are_kept(data):
    run(epochs=1, crop='published')
    assert result()['transform']['crop'] == 0.96 and result()['transform']['interpolation'] == 'bicubic'
    with pytest.raises(UserError, match='RESUME.*CROP'):
        run(epochs=2, resume='true')
    run(epochs=1, crop=0.9, output_dir='cropped')
    found = read_json('cropped/result.json')['transform']
    assert (found['crop'], found['interpolation']) == (0.9, 'bilinear')


def test_training_sees_what_validation_sees(data):
    """Of pictures that are longer than wide, with a crop."""
    shutil.rmtree('data/val')
    for path in Path('data/train').rglob('*.*'):
        Image.effect_noise((90, 40), 60).save(path)
    shutil.copytree('data/train', 'data/val')
    _, found, _ = build(crop=0.8, view='none', augmentation=0)
    images = [found.train.dataset[0, 1][0], found.val.dataset[0][0]]
    assert torch.equal(*images) and images[0].std() > 0.1


def test_a_diverged_loss_ends_the_run_in_words(data):
    with pytest.raises(UserError, match='the loss became .* lower LR'):
        run(lr=1e9, clip_grad=0, use_amp='false', epochs=5)


def test_single_precision_and_without_ema(data):
    run(epochs=1, use_amp='false', use_ema='false')
    row = result()['last']
    assert row['ema_acc1'] is None and result()['best']['weights'] == 'raw' and 'fp32' in result()['device']


def test_digits_are_learnt(tmp_path, monkeypatch):
    """901 real scans of handwritten digits, 0 to 4, that come with scikit-learn."""
    monkeypatch.chdir(tmp_path)
    images, labels = load_digits(n_class=5, return_X_y=True)
    for side, indices in zip(('train', 'val'), train_test_split(range(len(labels)), test_size=0.3, stratify=labels,
                                                                random_state=0), strict=True):
        for index in indices:
            folder = tmp_path / 'data' / side / str(labels[index])
            folder.mkdir(parents=True, exist_ok=True)
            pixels = (images[index].reshape(8, 8) * 255 / 16).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f'{index}.png')
    run(epochs=4, batch_size=32, lr=2e-3, warmup=0.125, view='text', blur=0, cutout=0, mixup_prob=0,
        model_kwargs={**TINY, 'embed_dims': (48, 96), 'num_heads': (2, 4)})
    history = torch.load('out/last.pth', weights_only=True)['history']
    assert history[-1]['train_loss'] < history[0]['train_loss']
    assert result()['best']['acc1'] >= 90
