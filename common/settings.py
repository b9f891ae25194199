"""The UPPER_CASE constants at the top of a script are its settings.

`python train.py` uses them as they stand; `python train.py --img-size 96` overrides IMG_SIZE for one run. `run(main)`
reads them and calls main(cfg), where cfg.IMG_SIZE is the effective value: code takes values from cfg, never from the
constants, so that an override also holds in worker processes. A constant that may be of several types says so in an
annotation (`MAX_SIDE: int | None = None`); any other keeps the type of its value. Names with a leading underscore are
no settings.
"""
import argparse
import ast
import contextlib
import difflib
import inspect
import io
import math
import os
import sys
import tokenize
import types
import typing
from collections.abc import Callable
from pathlib import Path

from common.runtime.console import PrintableStream, printable
from common.runtime.errors import Stopped, UserError, lost_peer
from common.runtime.processes import LAUNCHED, RANK, claim_failure, kill_workers

Settings = types.SimpleNamespace  # the constants of a script by name, with their effective values


def run(main: Callable[[Settings], None], rows_only: Callable[[Settings], bool] = lambda cfg: False) -> None:
    """Print a script's settings and call its main(cfg). A UserError ends it with one line and exit code 2.

    With settings of which `rows_only` is true, what is printed goes to standard error: sys.__stdout__ is for rows that
    another program reads.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):  # not so in a notebook
            # No file name, however odd, ends a run as it is printed; and a line in a log file is there at once.
            stream.reconfigure(errors='backslashreplace', line_buffering=True)
    if not isinstance(sys.stdout, PrintableStream):
        sys.stdout = PrintableStream(sys.stdout)
    if RANK:
        sys.stdout = open(os.devnull, 'w')  # noqa: SIM115 - the first process speaks for all
    code = 0
    try:
        call(main, rows_only)
    except SystemExit as end:
        if not LAUNCHED:
            raise
        code = end.code or 0
    finally:
        kill_workers()
    if LAUNCHED:
        # Threads of torch.distributed may still hold tensors; while Python takes itself down, that can abort the
        # process (pytorch/pytorch#179291).
        sys.stdout.flush()
        sys.__stdout__.flush()
        os._exit(code)


def call(main: Callable[[Settings], None], rows_only: Callable[[Settings], bool]) -> None:
    """The part of run that reads the settings; errors that are not bugs become SystemExit."""
    module = sys.modules[main.__module__]
    script = Path(module.__file__).name
    try:
        cfg = read(module)
        with contextlib.redirect_stdout(sys.stderr) if rows_only(cfg) else contextlib.nullcontext():
            show(cfg, module)
            main(cfg)
    except UserError as error:
        leave(f'{script}: {printable(" ".join(str(error).split()))}', 2)
    except Stopped as stopped:
        sys.exit(128 + stopped.args[0])
    except KeyboardInterrupt:
        leave(f'\n{script}: interrupted', 130)
    except MemoryError:
        leave(f'{script}: out of memory: end other programs, or lower NUM_WORKERS', 2)
    except Exception as error:
        if LAUNCHED and lost_peer(error):
            reason = str(error).strip().partition('\n')[0]
            leave(f'{script}: another process of this run ended or cannot be reached ({printable(reason)})', 1)
        if not claim_failure():
            sys.exit(1)
        raise


def leave(message: str, code: int) -> None:
    """End the script with a message; of several processes only the first that fails has its message printed."""
    sys.stdout.flush()
    if claim_failure():
        print(message, file=sys.stderr, flush=True)
    sys.exit(code)


def read(module: types.ModuleType, argv: list[str] | None = None) -> Settings:
    """The effective settings of a script's module: a namespace of its constants, overridden by the command line.

    `argv` is sys.argv[1:] unless given. `--help` prints every constant with its comment and leaves. Raises UserError
    for an unknown name and for a value of the wrong type.
    """
    comments = _comments(inspect.getsource(module))
    values = {name: getattr(module, name) for name in comments}
    kinds = {name: _kinds(module, name, value) for name, value in values.items()}
    for name, value in values.items():
        if not _fits(value, kinds[name]):
            raise UserError(f'{name} = {value!r} must be {_describe(kinds[name])}')
    parser = _parser(module.__doc__, values, kinds, comments)
    overrides, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UserError(f'unknown argument {unknown[0]}{_nearest(unknown[0], values)}')
    for option, text in vars(overrides).items():
        values[option] = _parse(option, text, kinds[option])
    return Settings(**values)


def check_ranges(cfg: Settings, ranges: dict[str, tuple[float, float]]) -> None:
    """Raise UserError for a setting outside its range; `ranges` is {name: (least, most)}."""
    for name, (least, most) in ranges.items():
        if not least <= getattr(cfg, name) <= most:
            raise UserError(f'{name} = {getattr(cfg, name)} must be at least {least}'
                            + (f' and at most {most}' if most < math.inf else ''))


def show(cfg: Settings, module: types.ModuleType) -> None:
    """Print the effective values, and beside an overridden one what the script says."""
    width = max(map(len, vars(cfg)), default=0)
    for name, value in vars(cfg).items():
        changed = '' if value == getattr(module, name) else f'   (in the file: {getattr(module, name)!r})'
        print(f'{name:{width}} = {value!r}{changed}')


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message)


def _parser(description, values, kinds, comments):
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    for name, value in values.items():
        text = f'{comments[name]} (default: {value!r})'.strip().replace('%', '%%')
        flag = {'nargs': '?', 'const': 'true'} if bool in kinds[name] else {}
        parser.add_argument(_option(name), dest=name, metavar=name, default=argparse.SUPPRESS, help=text, **flag)
    return parser


def _option(name):
    return '--' + name.lower().replace('_', '-')


def _nearest(argument, values):
    """' (did you mean …)' for the constant whose name is most like a mistyped argument, or ''."""
    names = {_option(name): name for name in values}
    near = difflib.get_close_matches(argument.split('=')[0].lower().replace('_', '-'), names, n=1, cutoff=0.5)
    return f': did you mean {near[0]} ({names[near[0]]})?' if near else ': --help lists them all'


def _kinds(module, name, value):
    """The types that a constant may have."""
    hint = typing.get_type_hints(module).get(name, type(value))
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _fits(value, kinds):
    return type(value) in kinds or (type(value) is int and float in kinds)


def _parse(name, text, kinds):
    """The value of a command-line text, of the first of the constant's types that it can be read as."""
    if type(None) in kinds and text.lower() == 'none':
        return None
    if bool in kinds and text.lower() in ('true', 'false', 'yes', 'no', '1', '0'):
        return text.lower() in ('true', 'yes', '1')
    for kind in (int, float, tuple, dict):
        if kind in kinds:
            try:
                value = ast.literal_eval(text.strip())
            except (ValueError, SyntaxError):
                continue
            if _fits(value, (kind,)):
                return kind(value)
    if str in kinds:
        return text
    raise UserError(f'{_option(name)} {text}: {name} must be {_describe(kinds)}')


def _describe(kinds):
    words = {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'a text',
             tuple: 'values with commas', dict: "{'name': value} pairs", type(None): 'None'}
    return ' or '.join(words.get(kind, kind.__name__) for kind in kinds)


def _comments(source):
    """{constant: the comment beside it}, in the order of the source, with the comment lines that continue it below."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    comments = {}
    for node in ast.parse(source).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, 'target', None)
        if isinstance(target, ast.Tuple) and all(getattr(name, 'id', '').isupper() for name in target.elts):
            raise UserError(f'line {node.lineno}: {ast.unparse(node)}: give each constant a line of its own')
        if isinstance(target, ast.Name) and target.id.isupper() and not target.id.startswith('_'):
            words, line = [], node.end_lineno
            while line in lines and (not words or lines[line].line.startswith(' ')):  # an indented line continues it
                words.append(lines[line].string.lstrip('# '))
                line += 1
            comments[target.id] = ' '.join(words)
    return comments
