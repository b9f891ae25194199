"""What goes on around the updates: the sums for the log, the guard, the progress bar, the forecast, saves, signals."""
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from common.data.build import Data
from common.runtime.console import Bar, format_duration
from common.settings import Settings
from common.training.clock import Clock
from common.training.guard import check_update
from common.training.saver import Saver
from common.training.state import TrainState, Update

FORWARD = 1 / 3  # of the time that a training step takes


class Monitor:
    """Offers the one hook after every update of an epoch; `clock` knows how long the run still takes."""

    def __init__(self, cfg: Settings, state: TrainState, data: Data, saver: Saver):
        self.cfg, self.state, self.data, self.saver = cfg, state, data, saver
        validations = (1 + cfg.USE_EMA) * len(data.val) / cfg.ACCUMULATE_STEPS
        images = cfg.EPOCHS * len(data.train) * cfg.BATCH_SIZE
        self.pflop = state.image_flop and state.image_flop * images / 1e15  # of the whole run
        self.clock = Clock(state.updates_per_epoch, cfg.EPOCHS, validation=FORWARD * validations)

    @contextmanager
    def epoch(self, epoch: int) -> Iterator[Callable[[Update], None]]:
        """Yields the hook for an epoch, counted from 0, which may have begun before the run was resumed."""
        if epoch == self.state.frozen_epochs:
            self.clock.restart()
        with Bar(initial=self.state.progress.updates, total=self.state.updates_per_epoch,
                 desc=f'epoch {epoch + 1}/{self.cfg.EPOCHS}', unit='update') as bar:
            yield lambda update: self.after_update(epoch, bar, update)

    def after_update(self, epoch: int, bar: Bar, update: Update) -> None:
        """The hook itself. Raises Diverged (guard.py), and Stopped after a signal."""
        progress = self.state.progress
        progress.add(update)
        check_update(self.cfg, self.state, self.data.train, epoch, update)
        self.clock.add(update.seconds)
        if epoch >= self.state.frozen_epochs:
            self.clock.forecast(self.cfg, epoch, progress.updates, self.pflop)
        bar.set_postfix_str(
            f'loss {progress.losses.avg:.3f}, lr {self.state.learning_rate:.1e}, '
            f'{progress.images / progress.seconds:.1f} img/s, waiting {progress.waited / progress.seconds:.0%}, '
            f'whole run {format_duration(self.clock.seconds_left(epoch, progress.updates))} left', refresh=False)
        bar.update()
        self.saver.between_updates()
