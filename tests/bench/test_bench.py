"""The benchmarks run: as long as it takes to see that."""
import pytest
from helpers import run_script


@pytest.mark.parametrize('script, options, words', [
    ('model', ('--img-size', 32, '--batch-sizes', '1,', '--repeats', 1), 'forward, eval, float32, batch 1'),
    ('data', ('--model', 'test_vit', '--img-size', 32, '--batch-size', 8, '--epochs', 1, '--seconds', 0), 'median '),
    ('loss', ('--img-size', 32, '--batch-size', 2, '--seeds', '1,2', '--steps', 4), 'quarter 4: ours - timm')])
def test_a_benchmark_runs(folder, tmp_path, script, options, words):
    done = run_script(f'tests/bench/{script}.py', *options, cwd=tmp_path)
    assert done.returncode == 0 and words in done.stdout, done.stderr
