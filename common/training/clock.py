"""The time that is left of a whole training run."""
from common.runtime.console import Bar, format_duration
from common.settings import Settings

LONG = 3600  # seconds; longer runs are told what would shorten them


class Clock:
    """How long a whole training run takes: from the updates so far, and from what follows the updates of each epoch.

    `updates` is per epoch. `validation` is a guess of what follows them in an epoch, in updates, until the first of
    those was measured (`validation_seconds`).
    """

    def __init__(self, updates: int, epochs: int, validation: float):
        self.updates, self.epochs, self.validation = updates, epochs, validation
        self.validation_seconds: float | None = None  # measured
        self.forecast_given = False
        self.restart()

    def restart(self) -> None:
        """Forget the updates so far: those of the head alone do not tell how long the others take."""
        self.seconds, self.count = 0., 0

    def add(self, seconds: float) -> None:
        """Note what an update took."""
        self.count += 1
        if self.count > 1:  # the first one starts workers and chooses kernels
            self.seconds += seconds

    def epoch_seconds(self) -> float | None:
        """Seconds that an epoch takes, or None before the second update."""
        if self.count < 2:
            return None
        update = self.seconds / (self.count - 1)
        validation = self.validation * update if self.validation_seconds is None else self.validation_seconds
        return self.updates * update + validation

    def seconds_left(self, epoch: int, updates: int = 0) -> float | None:
        """Seconds left after so many updates of an epoch, counted from 0; None while nothing is known."""
        seconds = self.epoch_seconds()
        return seconds and max(0., seconds * (self.epochs - epoch - updates / (self.updates + self.validation)))

    def forecast(self, cfg: Settings, epoch: int, updates: int, pflop: float | None) -> None:
        """Say once, after some updates, how long a run with these settings takes, and what shortens a long one.

        `pflop` is the compute of the whole run, in 10^15 floating-point operations.
        """
        if self.forecast_given or self.count < 2 or (self.seconds < 10 and updates < self.updates):
            return
        self.forecast_given = True
        left = self.seconds_left(epoch, updates)
        text = f'forecast: {format_duration(left)} until the end of the run, on this machine'
        if pflop is not None:
            text += f' ({pflop:.2g} PFLOP for the whole run)'
        if left > LONG:
            small = tuple(max(16, side // 32 * 16) for side in cfg.IMG_SIZE)
            text += (f'; shorter with fewer EPOCHS (now {cfg.EPOCHS}), with IMG_SIZE = {small} (about a quarter of '
                     'it), or on a machine with a GPU')
        Bar.write(text)
