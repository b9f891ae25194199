"""The benchmarks run: as long as it takes to see that."""
import csv

import pytest
from helpers import run_script


@pytest.mark.parametrize('script, options, words', [
    ('model', ('--img-size', 32, '--batch-sizes', '1,', '--repeats', 1), 'forward, eval, float32, batch 1'),
    ('data', ('--model', 'test_vit', '--img-size', 32, '--batch-size', 8, '--epochs', 1, '--seconds', 0), 'median '),
    ('loss', ('--img-size', 32, '--batch-size', 2, '--seeds', '1,2', '--steps', 4), 'quarter 4: ours - timm')])
def test_a_benchmark_runs(folder, tmp_path, script, options, words):
    done = run_script(f'tests/bench/{script}.py', *options, cwd=tmp_path)
    assert done.returncode == 0 and words in done.stdout, done.stderr


def test_a_recipes_accuracy_is_that_of_half_the_validation_set(folder, tmp_path):
    options = '--model test_vit --img-size 32 --batch-size 8 --epochs 2 --warmup 0 --drop-path 0'
    for half in ('choose', 'claim'):
        done = run_script('tests/bench/accuracy.py', '--photos', folder / 'train', '--options', options, '--half', half,
                          '--table', 'table.csv', cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    with open(tmp_path / 'table.csv', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert [row['half'] for row in rows] == ['choose', 'claim'] and {row['epochs'] for row in rows} == {'2'}
    assert sum(int(row['pictures']) for row in rows) == 6 and all(float(row['pflop']) > 0 for row in rows)
