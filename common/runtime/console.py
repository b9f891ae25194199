"""Progress of long work: a bar on a terminal, plain lines elsewhere, and the time left of a whole training run."""
import sys
import time

from tqdm import tqdm

PLAIN_SECONDS = 30  # between two lines where the output is not a terminal


class Bar(tqdm):
    """tqdm on a terminal; in a file or a pipe a plain line every PLAIN_SECONDS, none for work shorter than that."""

    def __init__(self, *args, **kwargs):
        plain = not sys.stderr.isatty()
        if plain:
            kwargs |= {'mininterval': PLAIN_SECONDS, 'maxinterval': PLAIN_SECONDS, 'delay': PLAIN_SECONDS,
                       'bar_format': '{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]'}
        super().__init__(*args, **kwargs | {'leave': False, 'dynamic_ncols': not plain})

    @classmethod
    def write(cls, text):
        """Print a line, on a terminal above the bar."""
        if sys.stderr.isatty():
            super().write(text)
        else:
            print(text)

    @staticmethod
    def status_printer(file):
        if file.isatty():
            return tqdm.status_printer(file)

        def write_line(text):
            if text.strip():
                file.write(text + '\n')
                file.flush()
        return write_line


def with_waiting(loader):
    """(seconds waited for it, batch) for every batch of a loader."""
    batches = iter(loader)
    while True:
        start = time.perf_counter()
        try:
            batch = next(batches)
        except StopIteration:
            return
        yield time.perf_counter() - start, batch


class Clock:
    """How long a whole training run will take: from the steps so far, and from what follows each epoch's steps.

    `steps` is per epoch. `rest` is the guess, in steps, of validation after an epoch, used until one was measured.
    """

    def __init__(self, steps, epochs, rest):
        self.steps, self.epochs, self.rest = steps, epochs, rest
        self.seconds = self.count = 0
        self.rest_seconds = None
        self.told = False  # whether the user has heard of it

    def step(self, seconds):
        self.count += 1
        if self.count > 1:  # the first one starts workers and chooses kernels
            self.seconds += seconds

    def epoch_seconds(self):
        """Seconds that an epoch takes, or None before the second step."""
        if self.count < 2:
            return None
        step = self.seconds / (self.count - 1)
        return self.steps * step + (self.rest * step if self.rest_seconds is None else self.rest_seconds)

    def left(self, epoch, step):
        """Seconds left after `step` steps of epoch number `epoch` (both from 0), or None when nothing is known yet."""
        seconds = self.epoch_seconds()
        return seconds and max(0., seconds * (self.epochs - epoch - step / (self.steps + self.rest)))

    def forecast(self, cfg, epoch, step):
        """Say once, after a few steps, how long a run with these settings takes, and what shortens a long one."""
        if self.told or self.count < 2 or (self.seconds < 10 and step + 1 < self.steps):
            return
        self.told = True
        left = self.left(epoch, step + 1)
        text = f'forecast: {format_duration(left)} for the whole run on this machine'
        if left > 3600:
            small = tuple(max(16, side // 32 * 16) for side in cfg.IMG_SIZE)
            text += (f'; shorter with fewer EPOCHS (now {cfg.EPOCHS}), with IMG_SIZE = {small} (about a quarter of '
                     'it), or on a machine with a GPU')
        Bar.write(text)


def format_duration(seconds):
    """'2 h 05 min', '3 min 20 s' or '12 s'; '?' for None."""
    if seconds is None:
        return '?'
    seconds = round(seconds)
    if seconds >= 3600:
        return f'{seconds // 3600} h {seconds % 3600 // 60:02} min'
    return f'{seconds // 60} min {seconds % 60:02} s' if seconds >= 60 else f'{seconds} s'
