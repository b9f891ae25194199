"""The benchmarks run: as long as it takes to see that."""
import csv

import pytest
from helpers import TINY, draw_folder, run_script


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
                          '--pflop', 1.6e-7, '--table', 'table.csv', cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    with open(tmp_path / 'table.csv', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert [row['half'] for row in rows] == ['choose', 'claim'] and {row['epochs'] for row in rows} == {'2'}
    assert all(1e-7 < float(row['pflop']) < 1.6e-7 and float(row['ema_acc1']) >= 0 for row in rows)


@pytest.mark.slow
def test_the_tutorials_training_runs(tmp_path):
    photos = draw_folder(tmp_path / 'photos', {'a': 14, 'b': 14})
    done = run_script('tests/bench/accuracy.py', '--photos', photos, '--recipe', 'tutorial', '--pflop', 7e-4,
                      '--table', 'table.csv', cwd=tmp_path)
    assert done.returncode == 0 and 'update 1/1, loss' in done.stdout, done.stderr
