"""What goes on around the updates: the sums for the log, the guard, the progress bar, the forecast, saves, signals."""
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from torch.utils.data import DataLoader

from common.data.loaders import Data, image_paths
from common.evaluation.certainty import fit_outliers
from common.runtime.console import Bar, format_duration
from common.runtime.errors import Stopped, UserError
from common.runtime.files import locked, writable_folder
from common.runtime.processes import RANK, StopRequest, barrier, largest, on_first
from common.settings import Settings
from common.training import checkpoint
from common.training.log import best_of, describe_run
from common.training.schedule import revise
from common.training.step import TrainState, Update
from models import state_dict_at

# Updates without a finite loss and gradient: skipped, counted, and after too many of them the end of the run

NAMES = 64  # of pictures in the message


class Diverged(UserError):
    """Too many updates in a row without a finite loss and gradient."""


def check_update(cfg: Settings, state: TrainState, loader: DataLoader, epoch: int, update: Update) -> None:
    """Count an update that was skipped. Raises Diverged, with the pictures, after MAX_SKIPPED_UPDATES in a row.

    float16 begins with a scale that is too large for the gradients and halves it at each that overflows; as long as it
    is at least 1, such updates are counted as skipped but not as in a row.
    """
    progress = state.progress
    if update.finite:
        progress.skipped_in_row = 0
        return
    progress.skipped += 1
    finite_loss = math.isfinite(update.loss)
    if finite_loss and state.scaler.is_enabled() and state.scaler.get_scale() >= 1:
        return
    progress.skipped_in_row += 1
    what = f'the norm of the gradient became {update.norm}' if finite_loss else f'the loss became {update.loss}'
    if progress.skipped_in_row == 1:
        Bar.write(f'epoch {epoch + 1}, update {progress.updates}: {what}, so the update is skipped')
    whole_epoch = progress.updates == state.plan.updates_per_epoch and not progress.norms.count
    if progress.skipped_in_row >= cfg.MAX_SKIPPED_UPDATES or whole_epoch:
        size = cfg.BATCH_SIZE * cfg.ACCUMULATE_STEPS
        names = image_paths(loader, first=(progress.updates - 1) * size, count=update.images)
        more = f' and {len(names) - NAMES} more' if len(names) > NAMES else ''
        raise Diverged(f'{what} in epoch {epoch + 1}, update {progress.updates}, and {progress.skipped_in_row} updates '
                       'in a row had to be skipped: lower LR, or look at the pictures of that update: '
                       + ', '.join(names[:NAMES]) + more)


# When checkpoints are written: last.pth by the clock, on a signal and at the end, best.pth when it improves

@contextmanager
def output_folder(path: str) -> Iterator[Path]:
    """Yields the folder OUTPUT_DIR, made where there is none, in which no other run may write meanwhile."""
    out = on_first(writable_folder, path, 'OUTPUT_DIR')
    refusal = f'OUTPUT_DIR = {path!r}: another run is writing there; choose another folder'
    with locked(out / '.lock', refusal) if RANK == 0 else nullcontext():
        yield out


class Saver:
    """Decides when to write last.pth and best.pth, which the first of several processes does. The run appends to
    `history`; `stop` notes the signals.
    """

    def __init__(self, cfg: Settings, state: TrainState, data: Data, out: Path, history: list[dict], stop: StopRequest):
        self.cfg, self.state, self.data, self.out, self.history, self.stop = cfg, state, data, out, history, stop
        self.saved_at = time.monotonic()

    def save_last(self) -> None:
        if RANK == 0:
            checkpoint.save_last(self.out, {**describe_run(self.cfg, self.state, self.data, self.history),
                                            'history': self.history, **self.state.state_dict()})
        self.saved_at = time.monotonic()

    def save_best(self, results: dict[str, dict]) -> dict | None:
        """Write best.pth if the epoch that has just ended is the best so far. Returns those of the `results` of its
        validation that are of the best weights, with their 'outliers', or None.

        While training has smaller images, it is a network for those.
        """
        best = best_of(self.history, self.cfg.BEST_BY)
        if RANK > 0 or not best or best['epoch'] < len(self.history):
            return None
        best_net = self.state.ema.module if best['weights'] == 'ema' else self.state.net
        size = [self.history[-1][name] for name in ('height', 'width')]
        chosen = results[best['weights']]
        chosen['outliers'] = fit_outliers(chosen['outputs'].features)
        content = describe_run(self.cfg, self.state, self.data, self.history)
        checkpoint.save(self.out / 'best.pth', {**content, 'transform': {**content['transform'], 'img_size': size},
                                                'history': self.history, 'state_dict': state_dict_at(best_net, size),
                                                'outliers': chosen['outliers']})
        return chosen

    def between_updates(self) -> None:
        """Save if SAVE_EVERY_MINUTES are over or a signal came to any process; then, after a signal, raise Stopped."""
        due = time.monotonic() - self.saved_at > 60 * self.cfg.SAVE_EVERY_MINUTES
        signum = int(largest(self.stop.signum or 0))
        if signum or (due and not self.state.progress.skipped_in_row):
            self.save_last()
        if signum:
            barrier()  # torchrun would end the one that still writes
            raise Stopped(signum)

    def after_epoch(self) -> None:
        """As between updates, and at the end of the run save in any case."""
        if len(self.history) < self.state.plan.epochs:
            self.between_updates()
        else:
            self.save_last()
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
