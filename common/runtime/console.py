"""What a script prints: text that is safe to print, progress bars, durations."""
import contextlib
import sys
from typing import TextIO

from tqdm import tqdm

from common.runtime.processes import RANK

PLAIN_SECONDS = 30  # between two lines of a bar where the output is not a terminal


def printable(text: str, allowed: str = '') -> str:
    """The text with escapes for invisible characters, such as terminal codes; those in `allowed` stay."""
    return ''.join(character if character.isprintable() or character in allowed
                   else character.encode('unicode_escape').decode() for character in text)


class PrintableStream:
    """A stream to which names of files and classes can be printed, whatever they hold. If it breaks, work goes on."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):  # `| head` has read enough, or the disk of a log file is full
            self.stream.write(printable(text, allowed='\n\t'))
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


class Bar(tqdm):
    """tqdm on a terminal; in a file or a pipe a plain line every PLAIN_SECONDS, none for work shorter than that."""

    def __init__(self, *args, **kwargs):
        plain = not sys.stderr.isatty()
        if plain:
            kwargs |= {'mininterval': PLAIN_SECONDS, 'maxinterval': PLAIN_SECONDS, 'delay': PLAIN_SECONDS,
                       'bar_format': '{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]'}
        super().__init__(*args, **kwargs | {'leave': False, 'dynamic_ncols': not plain, 'disable': RANK > 0})

    @classmethod
    def write(cls, text: str) -> None:
        """Print a line, on a terminal above the bar."""
        if sys.stderr.isatty():
            super().write(text)
        else:
            print(text)

    @staticmethod
    def status_printer(file: TextIO):
        if file.isatty():
            return tqdm.status_printer(file)

        def write_line(text):
            if text.strip():
                file.write(text + '\n')
                file.flush()
        return write_line


def format_duration(seconds: float | None) -> str:
    """'2 h 05 min', '3 min 20 s' or '12 s'; '?' for None."""
    if seconds is None:
        return '?'
    seconds = round(seconds)
    if seconds >= 3600:
        return f'{seconds // 3600} h {seconds % 3600 // 60:02} min'
    return f'{seconds // 60} min {seconds % 60:02} s' if seconds >= 60 else f'{seconds} s'
