"""common/training/checkpoint.py: written whole or not at all, loaded without running anything."""
import io
import os

import pytest
import torch

from common.runtime.errors import UserError
from common.training import checkpoint


def test_save_and_load(tmp_path):
    content = {'state_dict': {'w': torch.randn(3)}, 'history': [{'epoch': 1, 'x': None}], 'img_size': (1, 2)}
    checkpoint.save(tmp_path / 'last.pth', content)
    loaded = torch.load(tmp_path / 'last.pth', weights_only=True)
    assert torch.equal(loaded['state_dict']['w'], content['state_dict']['w'])
    assert loaded['history'] == content['history'] and loaded['img_size'] == content['img_size']
    assert [path.name for path in tmp_path.iterdir()] == ['last.pth']


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / 'last.pth', {'epoch': 1})

    def full_disk(content, file):
        file.write(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(torch, 'save', full_disk)
    with pytest.raises(UserError, match=r'last\.pth cannot be written .*No space left'):
        checkpoint.save(tmp_path / 'last.pth', {'epoch': 2})
    assert checkpoint.load(tmp_path / 'last.pth')['epoch'] == 1
    assert [path.name for path in tmp_path.iterdir()] == ['last.pth']


def test_a_full_disk_is_named_though_the_zip_writer_hides_it(tmp_path, monkeypatch):
    """torch.save would say "enforce fail at inline_container.cc"."""
    class FullDisk(io.BytesIO):
        def write(self, content):
            if self.tell() > 1000:
                raise OSError(28, 'No space left on device')
            return super().write(content)

    monkeypatch.setattr(checkpoint, 'open', lambda path, mode: FullDisk(), raising=False)
    with pytest.raises(UserError, match=r'last\.pth cannot be written \(No space left on device\)'):
        checkpoint.save(tmp_path / 'last.pth', {'w': torch.zeros(5000)})
    assert not os.listdir(tmp_path)


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match='no such file'):
        checkpoint.load(tmp_path / 'best.pth')
    torch.save({'state_dict': {}}, tmp_path / 'best.pth')
    with pytest.raises(UserError, match=r'not a checkpoint of train\.py'):
        checkpoint.load(tmp_path / 'best.pth')
    checkpoint.save(tmp_path / 'best.pth', {})
    torch.save({'format': checkpoint.FORMAT + 1}, tmp_path / 'best.pth')
    with pytest.raises(UserError, match='another version'):
        checkpoint.load(tmp_path / 'best.pth')


def test_a_save_is_on_the_disk_before_it_takes_the_place_of_the_old(tmp_path, monkeypatch):
    """The file is flushed, then moved, then the folder: in any other order a power cut could leave neither."""
    events = []
    folder = os.stat(tmp_path).st_ino
    monkeypatch.setattr(os, 'fsync', lambda file: events.append(
        'folder' if os.fstat(file if isinstance(file, int) else file.fileno()).st_ino == folder else 'file'))
    real = os.replace
    monkeypatch.setattr(os, 'replace', lambda *names: events.append('move') or real(*names))
    checkpoint.save(tmp_path / 'best.pth', {'epoch': 1})
    assert events == ['file', 'move', 'folder']
    events.clear()
    checkpoint.save_last(tmp_path, {'epoch': 1})
    checkpoint.save_last(tmp_path, {'epoch': 2})
    assert events[-6:] == ['file', 'move', 'folder', 'move', 'move', 'folder']


def test_the_save_before_stands_in_for_a_damaged_one(tmp_path, capsys):
    for epoch in (1, 2):
        checkpoint.save_last(tmp_path, {**dict.fromkeys(checkpoint.LAST_KEYS), 'progress': epoch})
    assert checkpoint.load_last(tmp_path)['progress'] == 2 and not capsys.readouterr().out
    last = tmp_path / 'last.pth'
    last.write_bytes(last.read_bytes()[:-100])
    for _ in range(2):
        assert checkpoint.load_last(tmp_path)['progress'] == 1
        assert capsys.readouterr().out == (f'{last} is missing or damaged: going on from the save before it, '
                                           f'{tmp_path / "last_before.pth"}\n')
        last.unlink(missing_ok=True)
    (tmp_path / 'last_before.pth').unlink()
    with pytest.raises(UserError, match=r'RESUME: there is no .*last\.pth: start without it'):
        checkpoint.load_last(tmp_path)


def test_a_last_pth_has_all_that_a_resumed_run_needs(tmp_path):
    content = dict.fromkeys(checkpoint.LAST_KEYS)
    del content['optimizer'], content['scaler']
    checkpoint.save_last(tmp_path, content)
    with pytest.raises(UserError) as error:
        checkpoint.load_last(tmp_path)
    assert str(error.value) == (f'RESUME: {tmp_path}/last.pth has no optimizer, scaler: it is no last.pth, or one of '
                                'an older version of this project')
