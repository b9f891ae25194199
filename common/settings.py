"""Settings: the UPPER_CASE constants at the top of a script, which the command line overrides.

`python train.py` uses the constants as they stand. `python train.py --img-size 96` overrides IMG_SIZE for one run.
`run(main)` reads them and calls main(cfg), where cfg.IMG_SIZE is the effective value. Code takes values from cfg, never
from the constants, so that an override also holds in worker processes.

An annotation says which types a constant may have (`MAX_SIDE: int | None = None`), and those of all scripts have one:
without it a constant would take the type of whatever a user writes. Names with a leading underscore are not settings.
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
import traceback
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from common.runtime.console import PrintableStream, SteadyStream, printable, steady_streams
from common.runtime.errors import Stopped, UserError, lost_peer
from common.runtime.processes import LAUNCHED, claim_failure
from common.runtime.signals import kill_workers

Settings = types.SimpleNamespace  # the constants of a script by name, with their effective values


# ---- running a script ------------------------------------------------------------------------------------------------

def run(main: Callable[[Settings], None], rows_only: Callable[[Settings], bool] = lambda cfg: False) -> None:
    """Print a script's settings and call its main(cfg). A UserError ends the script with one line and exit code 2.

    Where rows_only(cfg) is true, everything that is printed goes to standard error, and sys.__stdout__ is left for the
    rows that another program reads.
    """
    if sys.excepthook is sys.__excepthook__:  # a notebook has its own
        sys.excepthook = _print_traceback
    code = 0
    with steady_streams():
        try:
            _call(main, rows_only)
        except SystemExit as end:
            if not LAUNCHED:
                raise
            code = end.code or 0
        finally:
            kill_workers()
    if LAUNCHED:
        # Threads of torch.distributed may still hold tensors. That can abort the process while Python takes itself
        # down (pytorch/pytorch#179291), so Python is not given the time.
        os._exit(code)


def _print_traceback(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """Print the traceback of a bug. Its texts may hold names of files and classes, whatever these consist of."""
    text = ''.join(traceback.format_exception(kind, error, trace))
    print(printable(text, allowed='\n'), end='', file=SteadyStream(sys.stderr), flush=True)


def _call(main: Callable[[Settings], None], rows_only: Callable[[Settings], bool]) -> None:
    """Read the settings and call main(cfg). Errors that are not bugs become SystemExit."""
    module = sys.modules[main.__module__]
    file = Path(module.__file__)
    script = file.parent.name if file.name == '__main__.py' else file.name  # as the user calls it
    try:
        cfg = read(module)
        output = contextlib.nullcontext()
        if rows_only(cfg):
            output = contextlib.redirect_stdout(PrintableStream(sys.stderr))
        with output:
            show(vars(cfg), vars(module))
            main(cfg)
    except UserError as error:
        one_line = ' '.join(str(error).split())
        _leave(f'{script}: {printable(one_line)}', 2)
    except Stopped as stopped:
        sys.exit(128 + stopped.args[0])
    except KeyboardInterrupt:
        _leave(f'\n{script}: interrupted', 130)
    except MemoryError:
        _leave(f'{script}: out of memory: end other programs, or lower NUM_WORKERS', 2)
    except Exception as error:
        if LAUNCHED and lost_peer(error):
            reason = str(error).strip().partition('\n')[0]
            _leave(f'{script}: another process of this run ended or cannot be reached ({printable(reason)})', 1)
        if not claim_failure():
            sys.exit(1)
        raise


def _leave(message: str, code: int) -> NoReturn:
    """End the script with a message. Of several processes only the first that fails prints its message."""
    sys.stdout.flush()
    if claim_failure():
        print(message, file=sys.stderr, flush=True)
    sys.exit(code)


def show(values: Mapping[str, Any], in_file: Mapping[str, Any]) -> None:
    """Print the effective values of constants, and beside each overridden one the value in the file."""
    width = max(map(len, values), default=0)
    for name, value in values.items():
        overridden = '' if value == in_file[name] else f'   (in the file: {in_file[name]!r})'
        print(f'{name:{width}} = {value!r}{overridden}')


# ---- checking values -------------------------------------------------------------------------------------------------

def check_range(name: str, value: float, least: float, most: float = math.inf) -> None:
    """Raise UserError if the value of the constant `name` is below `least` or above `most`."""
    if not least <= value <= most:
        upper = '' if most == math.inf else f' and at most {most}'
        raise UserError(f'{name} = {value} must be at least {least}{upper}')


# ---- reading constants and the command line --------------------------------------------------------------------------

def read(module: types.ModuleType, argv: list[str] | None = None) -> Settings:
    """Return the constants of a script's module, overridden by the command line.

    `argv` is sys.argv[1:] unless given. `--help` prints every constant with its comment and exits. Raises UserError for
    an unknown name and for a value of the wrong type.
    """
    comments = _comments(inspect.getsource(module))
    values = {name: getattr(module, name) for name in comments}
    hints = typing.get_type_hints(module)
    kinds = {name: _kinds(hints.get(name, type(value))) for name, value in values.items()}
    for name, value in values.items():
        if not _fits(value, kinds[name]):
            raise UserError(f'{name} = {value!r} must be {_describe(kinds[name])}')
        if type(value) is int and int not in kinds[name]:
            values[name] = float(value)
    parser = _parser(module.__doc__, values, kinds, comments)
    overrides, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UserError(f'unknown argument {unknown[0]}: {_suggestion(unknown[0], values)}')
    for name, text in vars(overrides).items():
        values[name] = _parse(name, text, kinds[name])
    return Settings(**values)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _parser(description: str | None, values: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]],
            comments: Mapping[str, str]) -> _Parser:
    """Return a parser with an option for each constant. It leaves the texts as they are."""
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    for name, value in values.items():
        text = f'{comments[name]} (default: {value!r})'.strip()
        # `--use-ema` alone means true.
        flag = {'nargs': '?', 'const': 'true'} if bool in kinds[name] else {}
        parser.add_argument(_option(name), dest=name, metavar=name, default=argparse.SUPPRESS,
                            help=text.replace('%', '%%'), **flag)
    return parser


def _option(name: str) -> str:
    """Return '--img-size' for 'IMG_SIZE'."""
    return '--' + name.lower().replace('_', '-')


def _suggestion(argument: str, names: typing.Iterable[str]) -> str:
    """Return 'did you mean …?' with the constant whose name is most like a mistyped argument, or what lists them."""
    by_option = {_option(name): name for name in names}
    typed = argument.split('=')[0].lower().replace('_', '-')
    nearest = difflib.get_close_matches(typed, by_option, n=1, cutoff=0.5)
    if not nearest:
        return '--help lists them all'
    return f'did you mean {nearest[0]} ({by_option[nearest[0]]})?'


def _kinds(hint: Any) -> tuple[type, ...]:
    """Return the types that an annotation allows."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _fits(value: Any, kinds: tuple[type, ...]) -> bool:
    return type(value) in kinds or (type(value) is int and float in kinds)


def _parse(name: str, text: str, kinds: tuple[type, ...]) -> Any:
    """Return the value of a text from the command line, as the first of the constant's types that can hold it."""
    if type(None) in kinds and text.lower() == 'none':
        return None
    if bool in kinds and text.lower() in ('true', 'yes', '1'):
        return True
    if bool in kinds and text.lower() in ('false', 'no', '0'):
        return False
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


def _describe(kinds: tuple[type, ...]) -> str:
    words = {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'a text',
             tuple: 'values with commas', dict: "{'name': value} pairs", type(None): 'None'}
    return ' or '.join(words.get(kind, kind.__name__) for kind in kinds)


def _comments(source: str) -> dict[str, str]:
    """Return {constant: its comment}, in the order of the source.

    A comment begins on the line where the constant's value ends, and goes on in the indented comment lines below it.
    """
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comment_lines = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    comments = {}
    for node in ast.parse(source).body:
        name = _constant(node)
        if name is None:
            continue
        words = []
        number = node.end_lineno
        while number in comment_lines:
            comment = comment_lines[number]
            if number > node.end_lineno and not comment.line.startswith(' '):
                break
            words.append(comment.string.lstrip('# '))
            number += 1
        comments[name] = ' '.join(words)
    return comments


def _constant(node: ast.stmt) -> str | None:
    """Return the name of the constant that a statement defines, or None. Raises UserError if it defines several."""
    if isinstance(node, ast.Assign):
        target = node.targets[0]
    elif isinstance(node, ast.AnnAssign):
        target = node.target
    else:
        return None
    if isinstance(target, ast.Tuple) and any(_is_setting(name) for name in target.elts):
        raise UserError(f'line {node.lineno}: {ast.unparse(node)}: give each constant a line of its own')
    return target.id if _is_setting(target) else None


def _is_setting(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) and target.id.isupper() and not target.id.startswith('_')
