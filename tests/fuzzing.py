"""What tests that give a program anything at all share.

    FUZZ=20000 python -m pytest -k fuzz      `make fuzz`

The inputs are always the same: each is drawn from a seed, which is its number.
"""
import contextlib
import copy
import csv
import functools
import inspect
import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from helpers import ROOT

from common.runtime.signals import processor_time

try:
    import resource
except ImportError:  # Windows
    resource = None

def cases(default):
    """Let a test be called once for each of many cases, with a random.Random of its own as `random`. FUZZ says how many
    there are, in place of `default`. The case that fails is named.
    """
    def decorate(test):
        signature = inspect.signature(test)

        @functools.wraps(test)
        def call_for_each(**fixtures):
            for case in range(int(os.environ.get('FUZZ', default))):
                try:
                    test(**fixtures, random=Random(case))
                except Exception as error:
                    raise AssertionError(f'case {case}: {type(error).__name__}: {error}') from error

        call_for_each.__signature__ = signature.replace(parameters=[
            parameter for name, parameter in signature.parameters.items() if name != 'random'])
        return call_for_each

    return decorate


# ---- values and texts that nobody expects ----------------------------------------------------------------------------

NUMBERS = (0, -1, 1, 2, 48, 255, 10 ** 5, 2 ** 14, 2 ** 31, 2 ** 63, -2 ** 63, 2 ** 70, 10 ** 400, 0.5, -0.5, 1e-320,
           1e308, float('nan'), float('inf'), -float('inf'), True, False)

TEXTS = ('', ' ', '.', '..', '/', '../x', 'a/../../x', '/etc/passwd', 'a//b', 'C:\\x', 'con', '\0', 'a\0b', '\ud800',
         'a\udce9', '\x1b[2J', 'a\nb', '\u2028', '=1+1', '<script>', '$x$', '{{x}}', 'x' * 300, 'x' * 10 ** 5, '1e999',
         '-1', 'NaN', '１', 'true', 'None', 'test', 'train', 'val', 'a', 'a.png', 'train/a/000.png', 'makedata.py')


def nested(depth):
    """A list in a list and so on."""
    value = []
    for _ in range(depth):
        value = [value]
    return value


CONTAINERS = ([], {}, [0.5] * 3, [0.2, 0.2, 0], nested(100), [7] * 1000, ['a', 'a'], {'': {}}, {'\udce9': []})


def odd_text(random):
    """Any text."""
    if random.random() < 0.7:
        return random.choice(TEXTS)
    return ''.join(chr(random.randrange(random.choice((128, 0x11000)))) for _ in range(random.randrange(9)))


def odd_value(random, more=()):
    """Anything that JSON can hold, or one of `more`."""
    kind = random.randrange(6 if more else 5)
    if kind == 0:
        return random.choice(NUMBERS)
    if kind == 1:
        return odd_text(random)
    if kind == 2:
        return random.choice((None, random.randrange(100), random.random(), random.gauss(0, 1e9)))
    if kind == 3:
        return random.choice(CONTAINERS)
    if kind == 4:
        values = [odd_value(random, more) for _ in range(random.randrange(3))]
        return values if random.random() < 0.5 else {odd_text(random): value for value in values}
    return random.choice(more)


def odd_file(random):
    """Any text, JSON that is not what was meant, or JSON too deep to be read."""
    kind = random.randrange(3)
    if kind == 0:
        return ''.join(odd_text(random) for _ in range(random.randrange(4)))
    if kind == 1:
        return json.dumps(odd_value(random))
    return random.choice(('[' * 10 ** 5, '{"a":' * 10 ** 5, '0' * 10 ** 5, '\ufeff', '[]\n[]', '"' * 99, ',' * 99))


def write_odd(path, text):
    """Write a text that may hold halves of characters."""
    path.write_text(text, encoding='utf-8', errors='backslashreplace')


# ---- good contents with something wrong in them ----------------------------------------------------------------------

def places_in(content, depth=4):
    """The places of a value in nested dicts and lists, as tuples of keys: all of dicts, the first three of lists."""
    found = []
    if depth and isinstance(content, dict):
        inner = content.items()
    elif depth and isinstance(content, list):
        inner = list(enumerate(content))[:3]
    else:
        return found
    for key, value in inner:
        found.append((key,))
        found += [(key, *place) for place in places_in(value, depth - 1)]
    return found


def changed(content, place, value, how='put'):
    """A container that is changed at a place, a tuple of keys; as it is where there is no such place.

    'put' another value there, 'drop' it, 'add' one beside it, 'repeat' what is there, or 'wrap' it in a list.
    """
    if not isinstance(content, (dict, list)):
        return content
    key, *rest = place
    content = copy.copy(content)
    with contextlib.suppress(TypeError, KeyError, IndexError):
        if rest:
            content[key] = changed(content[key], rest, value, how)
        elif how == 'drop':
            del content[key]
        elif how == 'wrap':
            content[key] = [content[key]]
        elif how == 'repeat' and isinstance(content, list):
            content.insert(key, content[key])
        elif how == 'add' and isinstance(content, list):
            content.insert(key, value)
        elif how == 'add':
            content['new'] = value
        else:
            content[key] = value
    return content


HOW = ('put', 'put', 'put', 'put', 'drop', 'add', 'repeat', 'wrap')


def spoiled(random, content, places=(), odd=odd_value):
    """A container of which one to three things are changed, at any of its places or at those given."""
    for _ in range(random.randint(1, 3)):
        place = random.choice(places or places_in(content) or [(0,)])
        content = changed(content, place, odd(random), random.choice(HOW))
    return content


def edited(random, content):
    """Bytes of which up to six pieces are changed."""
    content = bytearray(content)
    for _ in range(random.randint(1, 6)):
        at = int(random.random() ** 2 * len(content))  # more of them near the beginning, where the headers are
        new = random.choice((b'\0', b'\xff' * 4, b'\n', b'"', random.randbytes(random.randint(1, 8))))
        kind = random.choice(('write', 'write', 'cut', 'insert', 'double', 'end'))
        if kind == 'write':
            content[at:at + len(new)] = new
        elif kind == 'cut':
            del content[at:at + random.randrange(256)]
        elif kind == 'insert':
            content[at:at] = new
        elif kind == 'double':
            content[at:at] = content[at:at + random.randrange(256)]
        elif random.random() < 0.3:
            del content[at:]
    return bytes(content)


def as_csv(rows):
    """The text of a table, whatever its cells and its rows are."""
    file = io.StringIO()
    csv.writer(file).writerows(row if isinstance(row, list) else [row] for row in rows)
    return file.getvalue()


def as_lines(values):
    """JSON, a line for each value."""
    return ''.join(f'{json.dumps(value)}\n' for value in values)


ENCODINGS = ('utf-8', 'utf-8', 'utf-8', 'utf-8', 'utf-8', 'utf-8-sig', 'utf-16', 'utf-32', 'latin-1', 'cp037')


def spoiled_file(random, content, as_text=json.dumps, odd=odd_value):
    """The bytes of a text file that is nearly as it should be: values changed, in some encoding, perhaps edited."""
    kind = random.randrange(8)
    if kind == 0:
        return odd_file(random).encode('utf-8', 'surrogatepass')
    text = as_text(content if kind == 1 else spoiled(random, content, odd=odd))
    encoding = random.choice(ENCODINGS)
    written = text.encode(encoding, 'surrogatepass' if encoding.startswith('utf') else 'backslashreplace')
    return edited(random, written) if kind in (1, 2) else written


# ---- what a reader may do meanwhile ----------------------------------------------------------------------------------

CODE = [os.path.realpath(folder) for folder in (ROOT, sys.prefix, sys.base_prefix, *filter(None, sys.path), '/proc',
                                                '/sys')]
CHANGING = {'os.remove': 1, 'os.rename': 2, 'os.mkdir': 1, 'os.rmdir': 1, 'os.link': 2, 'os.symlink': 2,
            'os.truncate': 1, 'os.chmod': 1, 'os.utime': 1}  # events of Python's audit, and how many paths each has
LOOKING = {'os.listdir', 'os.scandir'}
RUNNING = {'subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn', 'socket.connect'}

_allowed: list[str] | None = None  # folders; None where nobody watches
_touched: list[str] = []           # what else was touched


def _audit(event, arguments):
    if _allowed is None or event not in CHANGING and event not in LOOKING and event not in RUNNING and event != 'open':
        return
    if event in RUNNING:
        _touched.append(f'{event} {arguments[0]}')
        return
    folders = _allowed
    paths = arguments[:CHANGING.get(event, 1)]
    if event in LOOKING or (event == 'open' and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
        folders = [*_allowed, *CODE]
    if event in CHANGING and any(isinstance(extra, int) and extra >= 0 for extra in arguments[len(paths):]):
        return  # shutil.rmtree goes down from an open folder
    for path in paths:
        if isinstance(path, (str, bytes, os.PathLike)):
            path = os.fsdecode(path)
            if event == 'open':
                path = os.path.realpath(path)
            else:  # of a link itself, not of what it leads to
                path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
            if not any(path == folder or path.startswith(folder + os.sep) for folder in folders):
                _touched.append(f'{event} {path}')


sys.addaudithook(_audit)


@contextlib.contextmanager
def confined(*folders: Path, memory: int = 2 ** 30, seconds: float = 30) -> Iterator[None]:
    """Fail where the code inside touches a file outside these folders, or runs a program; raise where it takes more
    memory than that, in bytes, or computes for so many seconds.
    """
    global _allowed
    with contextlib.ExitStack() as limits:
        before = resource.getrlimit(resource.RLIMIT_AS) if sys.platform == 'linux' else (0, 0)
        if sys.platform == 'linux' and before[0] == resource.RLIM_INFINITY:
            used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + memory, before[1]))
            limits.callback(resource.setrlimit, resource.RLIMIT_AS, before)
        limits.enter_context(processor_time(seconds))
        _touched.clear()
        _allowed = [os.path.realpath(folder) for folder in folders]
        try:
            yield
        finally:
            _allowed = None
    assert not _touched, _touched


def check_line(error):
    """Fail unless an error is one line about the file, not about the memory that reading it took."""
    text = str(error).strip()
    assert text and '\n' not in text and 'MemoryError' not in text and 'out of memory' not in text, text


# ---- what is no file -------------------------------------------------------------------------------------------------

STRANGE = {
    'a folder': Path.mkdir, 'a pipe': getattr(os, 'mkfifo', None),
    'a link to nowhere': lambda path: path.symlink_to('nowhere'),
    'a link to itself': lambda path: path.symlink_to(path.name),
    'an endless device': lambda path: path.symlink_to('/dev/zero')}


def put_strange(path, what):
    """Put something else in the place of a file."""
    path.unlink(missing_ok=True)
    try:
        STRANGE[what](path)
    except (TypeError, OSError):
        pytest.skip(f'this system has no such thing: {what}')


@contextlib.contextmanager
def not_waited_for():
    """Interrupt what waits for a pipe."""
    def end(*received):
        raise AssertionError('it waits')

    if not hasattr(signal, 'setitimer'):
        yield
        return
    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, 60)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
