"""common/runtime/console.py: what is printed ends no program, whatever the streams are."""
import io
import os
import subprocess
import sys

import pytest
from helpers import ROOT

from common import settings
from common.data.sources import listed_files
from common.runtime import console
from common.runtime.console import Bar, PrintableStream, SteadyStream, shortened, steady_streams, text_width

pytestmark = pytest.mark.filterwarnings('error')


class Broken(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, text):
        raise BrokenPipeError(32, 'Broken pipe')

    def flush(self):
        self.write('')


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize('make', [lambda: None, closed, Broken], ids=['None', 'closed', 'broken'])
def test_printing_to_a_stream_that_is_none_closed_or_broken(monkeypatch, make):
    monkeypatch.setattr(sys, 'stdout', make())
    monkeypatch.setattr(sys, 'stderr', make())
    monkeypatch.setattr(console, 'PLAIN_SECONDS', 0)
    before = sys.stdout, sys.stderr
    with steady_streams():
        print('a line', flush=True)
        print('an error', file=sys.stderr, flush=True)
        assert not sys.stdout.isatty() and not sys.stderr.isatty()
        Bar.write('a line above')
        assert list(Bar(range(3), desc='work')) == [0, 1, 2]
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize('make', [lambda: None, closed], ids=['None', 'closed'])
def test_a_bar_in_a_program_of_a_users(monkeypatch, make):
    """Which has no console, and calls no script of ours."""
    monkeypatch.setattr(sys, 'stdout', make())
    monkeypatch.setattr(sys, 'stderr', make())
    monkeypatch.setattr(console, 'PLAIN_SECONDS', 0)
    Bar.write('a line')
    assert list(Bar(range(3), desc='work')) == [0, 1, 2]


def test_a_plain_bar_still_prints_lines(monkeypatch):
    monkeypatch.setattr(sys, 'stderr', io.StringIO())
    monkeypatch.setattr(console, 'PLAIN_SECONDS', 0)
    for _ in Bar(range(2), desc='work'):
        pass
    assert 'work: 1/2 [' in sys.stderr.getvalue()


def test_a_notebook_gets_its_streams_back():
    """`%run train.py`, whether it ends well, with an error or with exit code 2."""
    before = sys.stdout, sys.stderr
    for error in (None, SystemExit(2), ValueError('a bug')):
        try:
            with steady_streams():
                assert isinstance(sys.stdout, PrintableStream) and isinstance(sys.stderr, SteadyStream)
                if error:
                    raise error
        except (SystemExit, ValueError) as raised:
            assert raised is error
        assert (sys.stdout, sys.stderr) == before


def test_names_are_printed_safely_inside(capsys):
    with steady_streams():
        print('\x1b[2Ja\ud800')
    assert capsys.readouterr().out == '\\x1b[2Ja\\ud800\n'


def test_a_script_gives_the_streams_back(monkeypatch, tmp_path):
    """And leaves the hook of a notebook alone."""
    before = sys.stdout, sys.stderr

    def hook(*error):
        """A notebook's."""

    monkeypatch.setattr(sys, 'excepthook', hook)
    monkeypatch.setattr(settings, '_call', lambda main, rows_only: print('hello'))
    settings.run(None)
    assert (sys.stdout, sys.stderr) == before and sys.excepthook is hook


POSIX = pytest.mark.skipif(os.name != 'posix', reason='a shell of POSIX')


def shell(line, tmp_path):
    env = {**os.environ, 'PYTHON': sys.executable, 'SCRIPT': str(ROOT / 'makedata.py')}
    env.pop('PYTHONUNBUFFERED', None)  # with it nothing is left to be written when Python ends
    return subprocess.run(['sh', '-c', line], cwd=tmp_path, env=env, text=True, capture_output=True,
                          stdin=subprocess.DEVNULL)


@POSIX
@pytest.mark.parametrize('redirection', ['>&-', '<&- >&- 2>&-', '>/dev/full 2>&1'])
def test_a_script_without_standard_output_or_error_works(source, tmp_path, redirection):
    if 'full' in redirection and not os.path.exists('/dev/full'):
        pytest.skip('no /dev/full here')
    done = shell(f'"$PYTHON" "$SCRIPT" {redirection}; echo "exit $?" >code', tmp_path)
    assert (tmp_path / 'code').read_text() == 'exit 0\n' and done.stderr == ''
    assert len(list((tmp_path / 'data').rglob('*.png'))) == 30


@POSIX
def test_a_reader_that_has_read_enough_ends_a_script_quietly(source, tmp_path):
    done = shell('{ "$PYTHON" "$SCRIPT" 2>errors; echo "exit $?" >code; } | head -1', tmp_path)
    assert (tmp_path / 'code').read_text() == 'exit 0\n' and (tmp_path / 'errors').read_text() == ''
    assert done.stdout.count('\n') == 1


@POSIX
def test_a_file_that_is_opened_does_not_get_the_number_of_a_closed_stream(tmp_path):
    code = ('import os; from common.runtime.console import steady_streams\n'
            'with steady_streams():\n'
            '    file = open("x", "w"); os.write(1, b"lost"); os.write(2, b"lost"); assert file.fileno() > 2')
    env = {**os.environ, 'PYTHON': sys.executable, 'CODE': code, 'PYTHONPATH': str(ROOT)}
    subprocess.run(['sh', '-c', '"$PYTHON" -c "$CODE" <&- >&- 2>&-; echo "exit $?" >code'], cwd=tmp_path, env=env)
    assert (tmp_path / 'code').read_text() == 'exit 0\n' and (tmp_path / 'x').read_bytes() == b''


def test_a_list_of_files_on_a_closed_standard_input_is_empty(monkeypatch):
    monkeypatch.setattr(sys, 'stdin', None)
    assert list(listed_files()) == []


@pytest.mark.parametrize('text, most, expected', [
    ('short', 5, 'short'), ('a longer one', 7, 'a l…one'), ('', 3, ''), ('植物植物植物', 7, '植…物'),
    ('植物', 4, '植物')])
def test_long_texts_lose_their_middle(text, most, expected):
    assert shortened(text, most) == expected and text_width(shortened(text, most)) <= most
