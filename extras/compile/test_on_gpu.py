"""extras/compile: what only a machine with a GPU can show; skipped on others."""
import pytest
import torch
from helpers import build, read_json, run, run_script, update_without_waiting

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
POWERS = {'embed_dims': (32, 64), 'layers': (1, 1, 1, 1), 'num_heads': (2, 4), 'stem_hidden_dim': 16}  # heads of 16
CHANGES = {'model_kwargs': POWERS, 'epochs': 6, 'batch_size': 4, 'compile': 'true'}


@pytest.mark.parametrize('changes', [
    {}, {'drop_path': 0.3}, {'accumulate_steps': 2}, {'token_label': 'true', 'mixup_prob': 0}, {'optimizer': 'muon'}])
def test_a_compiled_network_learns(data, capsys, changes):
    run(**CHANGES, **changes)
    out = capsys.readouterr().out
    assert 'device: cuda' in out and 'going on without' not in out
    assert read_json('out/result.json')['best']['acc1'] == 100, out
    process = run_script('test.py', '--checkpoint', 'out/best.pth', '--num-workers', 0)
    assert process.returncode == 0 and 'ACC1 100' in process.stdout, process.stdout + process.stderr


def test_nothing_is_waited_for_between_forward_and_the_log(data):
    _, _, state = build(**CHANGES, token_label='true', mixup_prob=0)
    update_without_waiting(state)
