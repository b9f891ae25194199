"""What a script prints: text that is safe to print, progress bars, durations."""
import contextlib
import json
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
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


def text_width(text: str) -> int:
    """Return the width of a text in columns of a terminal, where most Chinese characters and emoji take two."""
    return sum(2 if unicodedata.east_asian_width(character) in 'WF' else 1 for character in text)


def shortened(text: str, most: int) -> str:
    """Return a text of at most `most` columns: a longer one loses its middle, since many names begin or end alike."""
    if text_width(text) <= most:
        return text
    start = text[:most]  # not more, since that takes time
    while text_width(start) > most // 2:
        start = start[:-1]
    end = text[-most:]
    while text_width(end) > most - 1 - most // 2:
        end = end[1:]
    return f'{start}…{end}'


def broken(text: str, most: int) -> list[str]:
    """Return a text as lines of at most `most` columns, which end behind a space, _, - or . where one is near."""
    lines = []
    while text_width(text) > most:
        line = text[:most]
        while text_width(line) > most:
            line = line[:-1]
        word_end = max(line.rfind(mark) for mark in ' _-.') + 1
        if word_end > len(line) // 2:
            line = line[:word_end]
        lines.append(line)
        text = text[len(line):]
    return [*lines, text]


def as_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON, in which invisible characters, such as terminal codes, are JSON's own escapes.

    A text in it is the same when it is read back.
    """
    lines = json.dumps(value, indent=indent, ensure_ascii=False).split('\n')
    return '\n'.join(line if line.isprintable() else _escaped(line) for line in lines)


def _escaped(line):
    """Return a line of JSON with escapes for the invisible characters in its texts."""
    return ''.join(character if character.isprintable() else json.dumps(character)[1:-1] for character in line)


class SteadyStream:
    """A stream that ends no program. What cannot be written is lost, and work goes on.

    A stream is None in a program without a console, such as a service or under pythonw. It may have been closed. It
    breaks where `| head` has read enough, or where the disk of a log file is full.
    """

    def __init__(self, stream: TextIO | None):
        self.stream = stream

    def write(self, text: str) -> int:
        if self.stream is not None:
            with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
                self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self.stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self.stream.flush()

    def isatty(self) -> bool:
        return not self.closed and self.stream.isatty()

    @property
    def closed(self) -> bool:
        """Whether what is written leads nowhere. The streams of some notebooks do not say."""
        return self.stream is None or getattr(self.stream, 'closed', False)

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


class PrintableStream(SteadyStream):
    """A SteadyStream that prints names of files and classes safely, whatever they hold."""

    def write(self, text: str) -> int:
        super().write(printable(text, allowed='\n\t'))
        return len(text)


@contextmanager
def steady_streams() -> Iterator[None]:
    """Let nothing that is printed inside `with` end the program, and silence all processes but the first.

    Afterwards the streams are the ones from before: a notebook that runs a script goes on with its own.
    """
    fill_closed_descriptors()
    before = sys.stdout, sys.stderr
    for stream in before:
        with contextlib.suppress(AttributeError, OSError, ValueError):  # None, closed, or the stream of a notebook
            # An odd file name must not end the run that prints it. In a log file each line is to be there at once.
            stream.reconfigure(errors='backslashreplace', line_buffering=True)
    with open(os.devnull, 'w') as nowhere:
        sys.stdout = PrintableStream(sys.stdout) if RANK == 0 else nowhere
        sys.stderr = SteadyStream(sys.stderr)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
            for stream in before:
                drop_unwritten(stream)


def fill_closed_descriptors() -> None:
    """Let the standard descriptors 0 to 2 lead nowhere where they are closed, as after `>&-`.

    Otherwise the next file that is opened gets such a number, and what a library prints lands in that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number


def drop_unwritten(stream: TextIO | None) -> None:
    """Flush a stream. Where that fails, let its descriptor lead nowhere: Python flushes it once more when the program
    ends, and would print an error.
    """
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError), open(os.devnull, 'w') as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def writable(stream: TextIO | None) -> TextIO | SteadyStream:
    """Return the stream, or one that leads nowhere for None and for a closed one."""
    if stream is None or getattr(stream, 'closed', False):
        return SteadyStream(None)
    return stream


class Bar(tqdm):
    """A progress bar: tqdm's on a terminal. In a file or a pipe, a plain line every PLAIN_SECONDS.

    Work that takes less than PLAIN_SECONDS prints no plain line. Only the first process of a run shows a bar.
    """

    def __init__(self, *args, **kwargs):
        stream = writable(sys.stderr)
        on_terminal = stream.isatty()
        if not on_terminal:
            kwargs['mininterval'] = PLAIN_SECONDS
            kwargs['maxinterval'] = PLAIN_SECONDS
            kwargs['delay'] = PLAIN_SECONDS
            kwargs['bar_format'] = '{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]'
        kwargs['file'] = stream
        kwargs['leave'] = False
        kwargs['dynamic_ncols'] = on_terminal
        kwargs['disable'] = RANK > 0
        super().__init__(*args, **kwargs)

    @classmethod
    def write(cls, text: str) -> None:
        """Print a line; on a terminal it appears above the bar."""
        output = writable(sys.stdout)
        if writable(sys.stderr).isatty():
            super().write(text, file=output)
        else:
            print(text, file=output)

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
