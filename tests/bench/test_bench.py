"""The benchmarks run: as long as it takes to see that."""
import csv
import shutil

import pytest
from helpers import TINY, draw_folder, run_script
from PIL import Image


@pytest.mark.parametrize('script, options, words', [
    ('model', ('--img-size', 32, '--batch-sizes', '1,', '--repeats', 1), 'forward, eval, float32, batch 1'),
    ('data', ('--model', 'test_vit', '--img-size', 32, '--batch-size', 8, '--epochs', 1, '--seconds', 0), 'median '),
    ('loss', ('--img-size', 32, '--batch-size', 2, '--seeds', '1,2', '--steps', 4), 'quarter 4: ours - timm')])
def test_a_benchmark_runs(folder, tmp_path, script, options, words):
    done = run_script(f'tests/bench/{script}.py', *options, cwd=tmp_path)
    assert done.returncode == 0 and words in done.stdout, done.stderr


def test_a_recipes_accuracy_is_that_of_half_the_validation_set(folder, tmp_path):
    options = f'--img-size 32 --batch-size 4 --model-kwargs "{TINY}"'
    for recipe, half in (('ours', 'claim'), ('published init', 'choose'), ('no outlook shifts', 'choose')):
        done = run_script('tests/bench/accuracy.py', '--photos', folder / 'train', '--options', options, '--half', half,
                          '--recipe', recipe, '--pflop', 1.6e-7, '--table', 'table.csv', cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        shutil.rmtree(tmp_path / 'bench')
    with open(tmp_path / 'table.csv', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert [row['half'] for row in rows] == ['claim', 'choose', 'choose'] and {row['epochs'] for row in rows} == {'2'}
    assert all(1e-7 < float(row['pflop']) < 1.6e-7 and float(row['ema_acc1']) >= 0 for row in rows)
    assert Image.open(tmp_path / 'table.png').width > 500


def test_the_bench_of_balance(folder, tmp_path):
    options = f'--img-size 32 --batch-size 4 --model-kwargs "{TINY}"'
    done = run_script('tests/bench/balance.py', '--photos', folder / 'train', '--options', options, '--balance',
                      'sampler', '--pflop', 1.6e-7, cwd=tmp_path)
    assert done.returncode == 0 and '"recall_few": ' in done.stdout, done.stderr
    assert [len(list((tmp_path / 'bench' / 'data' / 'train' / name).iterdir())) for name in 'ab'] == [1, 7]


@pytest.mark.slow
@pytest.mark.parametrize('recipe, pflop', [('tutorial', 7e-4), ('timm', 1.2e-4)])
def test_the_recipes_of_others_train(tmp_path, recipe, pflop):
    photos = draw_folder(tmp_path / 'photos', {'a': 24, 'b': 24})
    done = run_script('tests/bench/accuracy.py', '--photos', photos, '--recipe', recipe, '--pflop', pflop,
                      '--table', 'table.csv', cwd=tmp_path)
    assert done.returncode == 0 and '1/1' in done.stderr and 'loss=' in done.stderr, done.stderr
