"""What goes on around the updates: the sums for the log, the guard, the progress bar, the forecast, saves, signals."""
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from common.data.build import Data
from common.runtime.console import Bar, format_duration
from common.runtime.distributed import largest
from common.settings import Settings
from common.training.budget import revise
from common.training.guard import check_update
from common.training.saver import Saver
from common.training.state import TrainState, Update

REVISIONS = 50  # of the plan, in a run with TIME_BUDGET
LONG = 3600     # seconds; longer runs are told what would shorten them


class Monitor:
    """Offers the one hook after every update of an epoch."""

    def __init__(self, cfg: Settings, state: TrainState, data: Data, saver: Saver):
        self.cfg, self.state, self.data, self.saver = cfg, state, data, saver
        self.every = 60 * (cfg.TIME_BUDGET or 0) / REVISIONS  # seconds
        self.revised = largest(state.clock.elapsed)
        self.forecast_given = False

    @contextmanager
    def epoch(self, epoch: int) -> Iterator[Callable[[Update], None]]:
        """Yields the hook for an epoch, counted from 0, which may have begun before the run was resumed."""
        plan = self.state.plan
        if epoch and epoch == self.state.frozen_epochs:
            self.state.clock.restart()
        with Bar(initial=self.state.progress.updates, total=plan.updates_in(epoch),
                 desc=f'epoch {epoch + 1}/{plan.epochs}', unit='update') as bar:
            yield lambda update: self.after_update(epoch, bar, update)

    def after_update(self, epoch: int, bar: Bar, update: Update) -> None:
        """The hook itself. Raises Diverged (guard.py), and Stopped after a signal."""
        progress, clock, plan = self.state.progress, self.state.clock, self.state.plan
        progress.add(update, self.state.update_flop(update.size, update.images))
        check_update(self.cfg, self.state, self.data.train, epoch, update)
        clock.add(update.size, update.seconds)
        if self.cfg.TIME_BUDGET and (elapsed := largest(clock.elapsed)) - self.revised > self.every:
            self.revised = elapsed
            revise(self.cfg, plan, clock, update.number)
            bar.total = plan.updates_in(epoch)
        seconds_left = clock.seconds_left(plan, update.number)
        if not self.forecast_given and seconds_left is not None and epoch >= self.state.frozen_epochs and (
                progress.seconds > 10 or progress.updates == plan.updates_in(epoch)):
            self.forecast_given = True
            Bar.write(forecast(self.cfg, self.state, update.number, seconds_left))
        bar.set_postfix_str(
            f'loss {progress.losses.avg:.3f}, lr {self.state.learning_rate:.1e}, '
            f'{progress.images / progress.seconds:.1f} img/s, waiting {progress.waited / progress.seconds:.0%}, '
            f'whole run {format_duration(seconds_left)} left', refresh=False)
        bar.update()
        self.saver.between_updates()


def forecast(cfg: Settings, state: TrainState, number: int, seconds_left: float) -> str:
    """How long a run with these settings takes after update `number`, and what shortens a long one."""
    text = f'forecast: {format_duration(seconds_left)} until the end of the run, on this machine'
    if state.image_flop:
        images = cfg.ACCUMULATE_STEPS * cfg.BATCH_SIZE
        flop = state.plan.updates * sum(
            share * state.update_flop(size, images) for size, share in state.plan.to_come(0))
        text += f' ({flop / 1e15:.2g} PFLOP for the whole run)'
    if seconds_left > LONG and not cfg.TIME_BUDGET:
        small = tuple(max(16, side // 32 * 16) for side in cfg.IMG_SIZE)
        text += (f'; shorter with a TIME_BUDGET in minutes, with fewer EPOCHS (now {cfg.EPOCHS}), with IMG_SIZE = '
                 f'{small} (about a quarter of it), or on a machine with a GPU')
    return text
