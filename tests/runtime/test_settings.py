"""common/settings.py: constants as settings, overridden by the command line."""
import importlib
import os
import subprocess
import sys
import types

import pytest
from helpers import ROOT, assert_annotated

from common import settings
from common.runtime.errors import UserError

SCRIPT = '''"""A script."""
from stat import ST_MODE

IMG_SIZE: int | tuple = 224  # pixels
EPOCHS = 3          # passes,
                    # 100 % of the data
LR = 1e-3           # rate
RATE: float = 0.25
USE_AMP = True
MAX_SIDE: int | None = None  # shrink
NAME = 'volo'
PRETRAINED: bool | str = 'auto'
KWARGS = {}
ZOOM: tuple | None = None
_PRIVATE = 1
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / 'a_script.py').write_text(SCRIPT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'a_script', raising=False)
    return __import__('a_script')


def test_constants_as_they_stand(module):
    assert vars(settings.read(module, [])) == {
        'IMG_SIZE': 224, 'EPOCHS': 3, 'LR': 1e-3, 'RATE': 0.25, 'USE_AMP': True, 'MAX_SIDE': None, 'NAME': 'volo',
        'PRETRAINED': 'auto', 'KWARGS': {}, 'ZOOM': None}


@pytest.mark.parametrize('argv, name, value', [
    (['--img-size', '96'], 'IMG_SIZE', 96), (['--img-size', '96,128'], 'IMG_SIZE', (96, 128)),
    (['--img-size=(96, 128)'], 'IMG_SIZE', (96, 128)), (['--lr', '1'], 'LR', 1.0), (['--lr', '2e-5'], 'LR', 2e-5),
    (['--use-amp', 'false'], 'USE_AMP', False), (['--use-amp'], 'USE_AMP', True),
    (['--max-side', '256'], 'MAX_SIDE', 256), (['--max-side', 'none'], 'MAX_SIDE', None),
    (['--name', '7'], 'NAME', '7'), (['--pretrained', 'false'], 'PRETRAINED', False),
    (['--pretrained', 'a/b.pth'], 'PRETRAINED', 'a/b.pth'), (['--kwargs', "{'a': (1, 2)}"], 'KWARGS', {'a': (1, 2)}),
    (['--zoom', '0.9,1.1'], 'ZOOM', (0.9, 1.1))])
def test_overrides(module, argv, name, value):
    result = getattr(settings.read(module, argv), name)
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize('argv, words', [
    (['--epochs', 'ten'], 'EPOCHS must be a whole number'), (['--epochs', '2.5'], 'EPOCHS must be a whole number'),
    (['--use-amp', 'maybe'], 'USE_AMP must be true or false'), (['--epoch', '3'], r'--epochs \(EPOCHS\)'),
    (['--imgsize', '3'], r'--img-size \(IMG_SIZE\)'), (['stray'], 'stray'), (['--zzzzzz'], '--help'),
    (['--epochs'], 'expected one argument'), (['--max-side', 'x'], 'MAX_SIDE must be a whole number or None')])
def test_mistakes_name_the_constant(module, argv, words):
    with pytest.raises(UserError, match=words):
        settings.read(module, argv)


def test_wrong_type_in_the_file(module):
    module.MAX_SIDE = 'big'
    with pytest.raises(UserError, match="MAX_SIDE = 'big' must be a whole number or None"):
        settings.read(module, [])


def test_a_whole_number_may_stand_for_any_number(module):
    module.RATE = 1
    rate = settings.read(module, []).RATE
    assert rate == 1 and type(rate) is float and settings.read(module, ['--rate', '0.5']).RATE == 0.5
    module.RATE = None
    with pytest.raises(UserError, match='RATE = None must be a number'):
        settings.read(module, [])


@pytest.mark.parametrize('name', ['mean_std', 'makedata', 'train', 'test'])
def test_every_constant_says_which_types_it_may_have(name):
    """Its value does not: a user may have changed it."""
    assert_annotated(importlib.import_module(name))


def test_two_constants_on_a_line_are_refused(module, monkeypatch):
    monkeypatch.setattr('inspect.getsource', lambda _: SCRIPT + 'MEAN, STD = (0, 0, 0), (1, 1, 1)\n')
    with pytest.raises(UserError, match='MEAN, STD = .* a line of its own'):
        settings.read(module, [])


def test_help_lists_every_constant_with_comment_and_default(module, capsys):
    with pytest.raises(SystemExit) as left:
        settings.read(module, ['--help'])
    text = ' '.join(capsys.readouterr().out.split())
    assert left.value.code == 0 and 'A script.' in text
    assert '--epochs EPOCHS passes, 100 % of the data (default: 3)' in text
    assert '--max-side MAX_SIDE shrink (default: None)' in text


def test_show_marks_what_was_overridden(module, capsys):
    settings.show(vars(settings.read(module, ['--epochs', '5'])), vars(module))
    lines = capsys.readouterr().out.splitlines()
    assert 'EPOCHS     = 5   (in the file: 3)' in lines and 'LR         = 0.001' in lines


def test_user_errors_end_in_one_line_and_bugs_in_a_traceback(tmp_path):
    for error, code, lines in (('settings.UserError("a\\n b")', 2, ['script.py: a b']), ('KeyError("bug")', 1, None)):
        (tmp_path / 'script.py').write_text(
            f'import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom common import settings\n'
            f'def main(cfg): raise {error}\nif __name__ == "__main__": settings.run(main)\n')
        done = subprocess.run([sys.executable, tmp_path / 'script.py'], capture_output=True, text=True)
        assert done.returncode == code
        assert done.stderr.splitlines() == lines if lines else 'Traceback' in done.stderr


def test_every_scripts_settings_can_be_read():
    for name in ('mean_std', 'makedata', 'train', 'test'):
        module = __import__(name)
        cfg = settings.read(module, [])
        assert isinstance(cfg, types.SimpleNamespace) and all(key.isupper() for key in vars(cfg))


BAD_NAMES = """from common import settings
PRINT = 'jsonl'
def main(cfg):
    print('\\x1b[2J printed')
    raise RuntimeError('\\x1b]0;x\\x07 raised')
if __name__ == '__main__':
    settings.run(main, rows_only=lambda cfg: {rows_only})
"""


@pytest.mark.parametrize('rows_only', [True, False])
def test_no_terminal_codes_are_printed(tmp_path, rows_only):
    """Neither by a script whose standard output is for rows, nor in the traceback of a bug."""
    (tmp_path / 'script.py').write_text(BAD_NAMES.format(rows_only=rows_only))
    done = subprocess.run([sys.executable, tmp_path / 'script.py'], env={**os.environ, 'PYTHONPATH': str(ROOT)},
                          text=True, encoding='utf-8', capture_output=True)
    assert done.returncode == 1 and 'RuntimeError: \\x1b]0;x\\x07 raised' in done.stderr
    assert '\\x1b[2J printed' in (done.stderr if rows_only else done.stdout)
    assert (done.stdout + done.stderr).replace('\n', '').isprintable()
