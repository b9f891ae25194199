"""What a script prints: text that is safe to print, progress bars, durations."""
import contextlib
import json
import sys
from typing import Any, TextIO

from tqdm import tqdm

from common.runtime.processes import RANK

PLAIN_SECONDS = 30  # between two lines of a progress bar where the output is not a terminal


def printable(text: str, allowed: str = '') -> str:
    """Return the text with escapes for invisible characters, such as terminal codes, except those in `allowed`."""
    if text.isprintable():
        return text
    return ''.join(character if character.isprintable() or character in allowed
                   else character.encode('unicode_escape').decode() for character in text)


def as_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON, in which invisible characters, such as terminal codes, are JSON's own escapes.

    A text in it is the same when it is read back.
    """
    lines = json.dumps(value, indent=indent, ensure_ascii=False).split('\n')
    return '\n'.join(line if line.isprintable() else _escaped(line) for line in lines)


def _escaped(line):
    """Return a line of JSON with escapes for the invisible characters in its texts."""
    return ''.join(character if character.isprintable() else json.dumps(character)[1:-1] for character in line)


class PrintableStream:
    """A stream that prints names of files and classes safely, whatever they hold. If the stream breaks, work goes on.

    It breaks where `| head` has read enough, or where the disk of a log file is full.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self.stream.write(printable(text, allowed='\n\t'))
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


class Bar(tqdm):
    """A progress bar: tqdm's on a terminal. In a file or a pipe, a plain line every PLAIN_SECONDS.

    Work that takes less than PLAIN_SECONDS prints no plain line. Only the first process of a run shows a bar.
    """

    def __init__(self, *args, **kwargs):
        on_terminal = sys.stderr.isatty()
        if not on_terminal:
            kwargs['mininterval'] = PLAIN_SECONDS
            kwargs['maxinterval'] = PLAIN_SECONDS
            kwargs['delay'] = PLAIN_SECONDS
            kwargs['bar_format'] = '{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]'
        kwargs['leave'] = False
        kwargs['dynamic_ncols'] = on_terminal
        kwargs['disable'] = RANK > 0
        super().__init__(*args, **kwargs)

    @classmethod
    def write(cls, text: str) -> None:
        """Print a line; on a terminal it appears above the bar."""
        if sys.stderr.isatty():
            super().write(text)
        else:
            print(text)

    @staticmethod
    def status_printer(file: TextIO):
        """Return the function with which tqdm prints its state: here one line each time where there is no terminal."""
        if file.isatty():
            return tqdm.status_printer(file)

        def write_line(text):
            if text.strip():
                file.write(text + '\n')
                file.flush()
        return write_line


def format_duration(seconds: float | None) -> str:
    """Return '2 h 05 min', '3 min 20 s' or '12 s'; '?' for None."""
    if seconds is None:
        return '?'
    seconds = round(seconds)
    if seconds >= 3600:
        return f'{seconds // 3600} h {seconds % 3600 // 60:02} min'
    if seconds >= 60:
        return f'{seconds // 60} min {seconds % 60:02} s'
    return f'{seconds} s'
