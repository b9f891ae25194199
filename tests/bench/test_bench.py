"""The benchmarks run: as long as it takes to see that."""
import csv
import hashlib
import importlib
import json
from contextlib import contextmanager

import pytest
import timm
import torch
from helpers import ROOT, TINY, draw_folder, prepare, run_script
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torchvision.transforms import v2

from common import settings
from common.data.datasets import ImageFolder
from common.data.transforms import Transform, eval_transform
from common.runtime.errors import UserError
from common.training import choices
from common.training.optimizer import POLYNOMIALS, Muon, optimizer_flop
from common.training.setup import network_spec
from models import create_model
from models.cost import multiply_adds

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('script, options, words', [
    ('model', ('--img-size', 32, '--batch-sizes', '1,', '--repeats', 1), 'forward, eval, float32, batch 1'),
    ('data', ('--model', 'test_vit', '--img-size', 32, '--batch-size', 8, '--epochs', 1, '--seconds', 0), 'median '),
    ('loss', ('--img-size', 32, '--batch-size', 2, '--seeds', '1,2', '--steps', 4), 'quarter 4: ours - timm')])
def test_a_benchmark_runs(folder, tmp_path, script, options, words):
    done = run_script(f'tests/bench/{script}.py', *options, cwd=tmp_path)
    assert done.returncode == 0 and words in done.stdout, done.stderr


def test_a_recipes_accuracy_is_that_of_half_the_validation_set(folder, tmp_path):
    options = f'--img-size 32 --batch-size 4 --model-kwargs "{TINY}"'
    for half in ('choose', 'claim'):
        done = run_script('tests/bench/accuracy.py', '--photos', folder / 'train', '--options', options, '--half', half,
                          '--pflop', 3.6e-7, '--table', 'table.csv', cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    with open(tmp_path / 'table.csv', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert [row['half'] for row in rows] == ['choose', 'claim'] and {row['epochs'] for row in rows} == {'2'}
    assert all(1.8e-7 < float(row['pflop']) < 3.6e-7 and float(row['ema_acc1']) >= 0 for row in rows)


def test_a_network_is_finetuned_on_some_of_a_set(tmp_path, monkeypatch):
    """The rate is so low that the weights stay what they were in the file."""
    photos = draw_folder(tmp_path / 'cells', {'a': 30, 'b': 10})
    torch.manual_seed(1)
    weights = timm.create_model('test_efficientnet').state_dict()
    torch.save(weights, tmp_path / 'weights.pth')
    options = '--model test_efficientnet --pretrained ../weights.pth --img-size 32 --batch-size 4 --lr 1e-9'
    arguments = ['--photos', photos, '--view', 'above', '--keep', 12, '--recipe', 'fine-tuned', '--epochs', 3,
                 '--options', options, '--table', 'table.csv']
    done = run_script('tests/bench/accuracy.py', *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / 'table.csv', encoding='utf-8') as file:
        row, = csv.DictReader(file)
    assert [row[name] for name in ('set', 'keep', 'view', 'near_duplicates', 'budget', 'epochs')] == [
        'cells', '12', 'above', 'True', '', '3']
    assert row['ema_acc1']
    saved = torch.load(tmp_path / 'bench' / 'out' / 'last.pth')
    assert float(row['pflop']) == pytest.approx(sum(epoch['pflop'] for epoch in saved['history']), rel=1e-2)
    assert saved['settings']['VIEW'] == 'above' and len(saved['history']) == 3
    assert torch.allclose(saved['state_dict']['conv_stem.weight'], weights['conv_stem.weight'], atol=1e-4)
    data = tmp_path / 'bench' / 'data'
    assert json.loads((data / 'split.json').read_text())['settings']['NEAR_DUPLICATES'] is True
    assert [len([*(data / side).rglob('*.png')]) for side in ('train', 'val')] == [12, 12]

    monkeypatch.syspath_prepend(ROOT / 'tests' / 'bench')
    accuracy = importlib.import_module('accuracy')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='choose another WORK_DIR'):
        accuracy.main(settings.read(accuracy, [*map(str, arguments), '--keep', '16']))


def test_a_folder_where_nothing_was_trained_is_taken_by_the_next_run(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tests' / 'bench')
    accuracy = importlib.import_module('accuracy')
    monkeypatch.chdir(tmp_path)
    accuracy.refuse_other_run({'KEEP': 1})
    accuracy.refuse_other_run({'KEEP': 2})
    (tmp_path / 'out').mkdir()
    accuracy.refuse_other_run({'KEEP': 2})
    with pytest.raises(UserError, match='choose another WORK_DIR'):
        accuracy.refuse_other_run({'KEEP': 1})
    (tmp_path / 'run.json').unlink()  # as earlier versions left it
    with pytest.raises(UserError, match='choose another WORK_DIR'):
        accuracy.refuse_other_run({'KEEP': 2})


def test_images_that_are_kept_are_chosen_by_the_hashes_of_their_paths(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tests' / 'bench')
    accuracy, counts = importlib.import_module('accuracy'), {'a': 60, 'b': 18, 'c': 4, 'd': 1}
    kept = {}
    for count in (8, 24, 25):
        data = draw_folder(tmp_path / str(count) / 'data' / 'train', counts)
        monkeypatch.chdir(tmp_path / str(count))
        accuracy.keep(count)
        kept[count] = {path.relative_to(data).as_posix() for path in data.rglob('*.png')}
    assert kept[8] < kept[24] < kept[25]
    names = {name: [f'{name}/{number:03}.png' for number in range(count)] for name, count in counts.items()}
    expected = {8: {'a': 3, 'b': 2, 'c': 2, 'd': 1}, 24: {'a': 16, 'b': 5, 'c': 2, 'd': 1}}
    for count, shares in expected.items():
        assert kept[count] == {path for name, share in shares.items() for path in sorted(
            names[name], key=lambda path: hashlib.sha256(path.encode()).digest())[:share]}
    for count in (7, 26):
        with pytest.raises(UserError, match=f'KEEP = {count} must be at least 8 and at most 25'):
            accuracy.keep(count)


@pytest.mark.parametrize('view, flips', [('upright', (0.5, 0)), ('above', (0.5, 0.5)), ('text', (0, 0))])
def test_timms_flips_are_those_of_the_view(folder, monkeypatch, view, flips):
    monkeypatch.syspath_prepend(ROOT / 'tests' / 'bench')
    recipes, asked = importlib.import_module('recipes'), {}
    monkeypatch.setattr(recipes, 'create_transform', lambda *_, **kwargs: asked.update(kwargs))
    monkeypatch.setattr(recipes, 'read_measured', lambda classes: ([0.5] * 3, [0.5] * 3))
    monkeypatch.setattr(recipes, 'run_loop', lambda *_: None)
    recipes.run_timm(f'--view {view}', 1., 1)
    assert (asked['hflip'], asked['vflip']) == flips


def test_the_drawing_has_a_panel_for_each_set(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tests' / 'bench')
    accuracy, figures = importlib.import_module('accuracy'), []
    drawn = accuracy.drawn

    @contextmanager
    def kept(*arguments):
        with drawn(*arguments) as figure:
            figures.append(figure)
            yield figure

    monkeypatch.setattr(accuracy, 'drawn', kept)
    columns = 'set,keep,near_duplicates,recipe,options,budget,pflop,half,raw_acc1,ema_acc1'
    rows = ['weeds,,False,ours,,0.1,0.09,claim,1,80', 'weeds,,False,ours,,0.1,0.09,claim,1,90',
            'weeds,,False,timm,,1,0.9,claim,50,40', 'weeds,,False,ours,--lr 1,0.1,0.09,claim,1,2',
            'weeds,9,False,ours,,0.1,0.09,claim,1,3', 'weeds,,False,ours,,0.1,0.09,choose,1,4',
            'cells,,True,ours,,1,0.9,claim,1,70', 'cells,,True,fine-tuned,--model m,,0.3,claim,97,96']
    (tmp_path / 'table.csv').write_text('\n'.join([columns, *rows]))
    accuracy.draw(tmp_path / 'table.csv')
    figure, = figures
    assert (tmp_path / 'table.png').exists()
    weeds, cells = figure.axes
    assert (weeds.get_title(), cells.get_title()) == ('weeds, near-duplicates not looked for', 'cells')
    assert [text.get_text() for text in figure.legends[0].texts] == ['ours', 'fine-tuned', 'timm']
    assert weeds.get_legend() is None and weeds.get_xlim() == cells.get_xlim() and weeds.get_ylim() == cells.get_ylim()
    points = [{bars.get_label(): bars.lines[0].get_xydata().tolist() for bars in axes.containers} for axes in
              figure.axes]
    assert points == [{'ours': [[0.1, 85]], 'fine-tuned': [], 'timm': [[1, 50]]},
                      {'ours': [[1, 70]], 'fine-tuned': [[0.3, 96]], 'timm': []}]


PARTS = {'no image filters': 'patch_embed.conv.0.weight', 'no channel means': 'patch_embed.proj.weight',
         'no outlook shifts': 'network.0.0.attn.attn.bias', 'no attention to neighbours': 'pos_embed'}


def test_a_recipe_begins_with_the_weights_that_it_names(monkeypatch):
    """A part that is left out is as in the published weights, small; all others are ours, large."""
    monkeypatch.syspath_prepend(ROOT / 'tests' / 'bench')
    accuracy, recipes = map(importlib.import_module, ('accuracy', 'recipes'))
    monkeypatch.setattr(recipes, 'run_train', lambda *_: create_model('volo_d1', img_size=32, **TINY))

    def spread(net):
        return {part: net.get_parameter(name).std().item() for part, name in PARTS.items()}

    ours = spread(create_model('volo_d1', img_size=32, **TINY))
    for left_out in PARTS:
        for part, found in spread(accuracy.RECIPES[left_out][0]('', 1., 1)).items():
            assert (found < 0.8 * ours[part]) == (part == left_out), (left_out, part)
    published = accuracy.RECIPES['published init'][0]('', 1., 1)
    assert not published.network[0][0].attn.attn.bias.any()
    assert all(0.01 < published.get_parameter(name).std() < 0.03
               for name in ('pos_embed', 'network.0.0.mlp.fc1.weight'))


def test_a_recipe_of_others_goes_on_where_it_was_interrupted(folder, tmp_path, monkeypatch):
    """With a learning rate of 0 after the interruption, the pictures that come then make no difference."""
    monkeypatch.syspath_prepend(ROOT / 'tests' / 'bench')
    recipes = importlib.import_module('recipes')
    monkeypatch.setattr(recipes, 'SAVE_EVERY', 0.)

    def run(interrupt_at=None):
        torch.manual_seed(1)
        transform = Transform([32, 32], [0.5] * 3, [0.5] * 3)
        dataset = ImageFolder(folder / 'train', v2.Compose([v2.Resize((32, 32)), eval_transform(transform)]))
        net = timm.create_model('test_vit', img_size=32, num_classes=2)
        optimizer, steps = torch.optim.SGD(net.parameters(), 0.1), []
        optimizer.register_step_post_hook(lambda *_: steps.append(1))
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: float(update < 3))

        def schedule(update):
            if update == interrupt_at:
                raise KeyboardInterrupt
            rate.step()

        pflop = 6.5 * 3 * 2 * multiply_adds(net, (32, 32)) * 4 / 1e15
        trained = recipes.run_loop(net, {}, dataset, transform, 4, pflop, optimizer, ModelEmaV3(net, 0.5),
                                   Mixup(prob=0., label_smoothing=0.1, num_classes=2), schedule)
        return trained, len(steps)

    whole, updates = run()
    with pytest.raises(KeyboardInterrupt):
        run(interrupt_at=4)
    again, updates_left = run()
    assert (updates, updates_left) == (6, 3)
    for name in ('raw', 'ema'):
        for key, value in whole.weights[name]['state_dict'].items():
            assert torch.equal(again.weights[name]['state_dict'][key], value), (name, key)


def test_what_the_optimizer_multiplies_belongs_to_the_compute(folder, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tests' / 'bench')
    recipes, flop = importlib.import_module('recipes'), {}
    dataset = ImageFolder(folder / 'train')
    for optimizer in ('adamw', 'muon'):
        cfg = prepare(optimizer=optimizer, accumulate_steps=2)
        flop[optimizer] = recipes.image_flop(cfg, dataset, (32, 32))
    net = network_spec(cfg, 2).create()
    own = optimizer_flop(Muon(net.parameters(), 1.))
    assert flop['muon'] - flop['adamw'] == pytest.approx(own / (2 * cfg.BATCH_SIZE))
    theirs = {name: recipes.update_flop(net, create_optimizer_v2(net, name, lr=1.), (32, 32), 8)
              for name in ('adamw', 'nmuon')}
    assert theirs['adamw'] == 3 * 2 * multiply_adds(net, (32, 32)) * 8
    assert theirs['nmuon'] - theirs['adamw'] == pytest.approx(own * 5 / len(POLYNOMIALS), rel=1e-3)  # it takes five


def test_a_recipe_has_the_batch_that_fits_with_images_of_its_size(folder, monkeypatch):
    """So little compute is enough for images of 64 pixels, of which 16 fit into the memory, and of the usual ones 2."""
    monkeypatch.syspath_prepend(ROOT / 'tests' / 'bench')
    recipes, begun = importlib.import_module('recipes'), []
    monkeypatch.setattr(ImageFolder, 'usual_side', lambda dataset: 300.)
    monkeypatch.setattr(choices, 'largest_batch', lambda spec, load: 16 if spec.img_size[0] <= 64 else 2)
    monkeypatch.setattr(recipes.train, 'main', begun.append)
    with pytest.raises(UserError, match='run train.py first'):
        recipes.run_train(f'--model-kwargs "{TINY}"', 1e-4, 1)
    net = create_model('volo_d1', img_size=64, num_classes=2, **TINY)
    epochs = 1e11 // (16 * 3 * 2 * multiply_adds(net, (64, 64)))
    assert vars(begun[0]).items() >= {'IMG_SIZE': 64, 'EPOCHS': epochs}.items()


def test_the_bench_of_balance(folder, tmp_path):
    options = f'--img-size 32 --batch-size 4 --model-kwargs "{TINY}"'
    done = run_script('tests/bench/balance.py', '--photos', folder / 'train', '--options', options, '--balance',
                      'sampler', '--pflop', 1.6e-7, cwd=tmp_path)
    assert done.returncode == 0 and '"recall_few": ' in done.stdout, done.stderr
    assert [len(list((tmp_path / 'bench' / 'data' / 'train' / name).iterdir())) for name in 'ab'] == [1, 7]


@pytest.mark.slow
@pytest.mark.parametrize('recipe, options, pflop', [('tutorial', '', 7e-4), ('timm', '--batch-size 16', 3.5e-4)])
def test_the_recipes_of_others_train(tmp_path, recipe, options, pflop):
    photos = draw_folder(tmp_path / 'photos', {'a': 24, 'b': 24})
    done = run_script('tests/bench/accuracy.py', '--photos', photos, '--recipe', recipe, '--options', options,
                      '--pflop', pflop, '--table', 'table.csv', cwd=tmp_path)
    assert done.returncode == 0 and '1/1' in done.stderr and 'loss=' in done.stderr, done.stderr


@pytest.mark.skipif(not (ROOT / 'extras' / 'gpu_augment').exists(), reason='there is no extras/gpu_augment')
@pytest.mark.skipif(not (ROOT / 'extras' / 'torchrun').exists(), reason='there is no extras/torchrun')
def test_what_a_gpu_has_to_show_is_rehearsed(tmp_path):
    """The ways to train that a CPU has come to the same loss."""
    done = run_script('tests/bench/gpu.py', '--device', 'cpu', '--parts', 'updates memory profile predict', '--seconds',
                      3000, '--img-size', 32, '--batch-size', 48, '--models', 'volo_d1', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / 'gpu_results.txt').read_text('utf-8').splitlines()
    endings = [line for line in lines if line.startswith('==== ') and ':' in line]
    assert len(endings) == 4 and all(': done, ' in line for line in endings), '\n'.join(lines)
    results = [line for line in lines if line.startswith('RESULT ')]
    assert len(results) == 7 and any('volo_d1: foretold ' in line for line in results)
    for line in results:
        assert 'volo_d1' in line or abs(float(line.split()[-1].rstrip('%'))) < 1, line
    assert any('aten::' in line for line in lines)


needs_review = pytest.mark.skipif(not (ROOT / 'extras' / 'review').exists(), reason='there is no extras/review')
REVIEW = f'--img-size 32 --batch-size 4 --model-kwargs "{TINY}"'


@needs_review
def test_the_bench_of_corrected_labels(folder, tmp_path):
    """The same call twice adds one row."""
    for looks in (0, 5, 5):
        done = run_script('tests/bench/review.py', '--photos', folder / 'train', '--noise', 0.2, '--looks', looks,
                          '--options', REVIEW, '--pflop', 3.6e-7, '--table', 'table.csv', cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    with open(tmp_path / 'table.csv', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert [(row['looks'], row['wrong']) for row in rows] == [('0', '3'), ('5', '3')]
    assert 0 <= int(rows[1]['found']) <= 3


@needs_review
@pytest.mark.parametrize('how', ['review', 'random'])
def test_the_bench_of_chosen_labels(folder, tmp_path, how):
    done = run_script('tests/bench/review.py', '--step', 'choose', '--photos', folder / 'train', '--how', how,
                      '--rounds', 2, '--per-round', 5, '--options', REVIEW, '--pflop', 1.6e-7, '--table', 'table.csv',
                      cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / 'table.csv', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert [row['labels'] for row in rows] == ['5', '10'] and all(float(row['high']) > 0 for row in rows)
