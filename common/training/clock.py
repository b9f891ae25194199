"""The time that is left of a whole training run."""
from common.runtime.console import Bar, format_duration


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
