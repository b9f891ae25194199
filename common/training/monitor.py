"""What goes on around updates and epochs: sums for the log, guard, progress, checkpoints, signals, reports."""
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from common.data.loaders import Data
from common.evaluation.outliers import fit_outliers
from common.runtime.console import Bar, format_duration
from common.runtime.errors import Stopped, UserError, extra
from common.runtime.files import write_json
from common.runtime.processes import RANK, WORLD_SIZE, barrier, largest
from common.runtime.signals import StopRequest
from common.settings import Settings
from common.training import checkpoint
from common.training.log import best_of, epoch_row, out_of_patience, print_epoch, write_epoch
from common.training.page import RunPage
from common.training.run_length import revise
from common.training.step import Progress, TrainState, Update, UpdateBatches

MAX_SKIPPED = 10      # updates in a row without a finite loss and gradient, after which the run goes back to a save
NAMED_FILES = 64      # of an update that could not be learnt from
PLAN_REVISIONS = 50   # in a run with TIME_BUDGET
LONG_RUN = 3600       # seconds; longer runs are told what would shorten them
FORECAST_AFTER = 10   # seconds of an epoch, when updates tell how long the run takes


class Diverged(UserError):
    """Too many updates in a row without a finite loss and gradient."""


class Monitor:
    """Watches a run, writes its checkpoints and reports, and appends a row to `history` after each epoch.

    `facts` is what every checkpoint says of the run (log.describe_run). Used with `with`: inside, signals that ask the
    run to stop are noted, and TRACKER gets the rows.
    """

    def __init__(self, cfg: Settings, state: TrainState, data: Data, facts: dict, history: list[dict], out: Path):
        self.cfg = cfg
        self.state = state
        self.data = data
        self.facts = facts
        self.history = history
        self.out = out
        self.page = RunPage(facts, state, data, out)
        self.stop = StopRequest()
        self.track: Callable[[dict], None] = lambda row: None
        self.opened = ExitStack()
        self.saved_at = time.monotonic()
        self.epoch_started = 0.
        self.epoch_trained = 0.   # when its training was over
        self.plan_revised = largest(state.clock.elapsed)  # seconds of the run
        self.forecast_given = False

    def __enter__(self) -> 'Monitor':
        with ExitStack() as opening:  # should it fail half-way, what was opened is closed
            opening.enter_context(self.stop)
            if self.cfg.TRACKER is not None and RANK == 0:
                with extra('TRACKER'):
                    from extras.trackers import tracking
                self.track = opening.enter_context(
                    tracking(self.cfg.TRACKER, self.facts['settings'], self.out, self.history))
            if RANK == 0:
                write_json(self.out / 'class.json', self.data.classes)
            if not self.history and not self.state.progress.updates:
                self.save_last()  # there is a save to go back to from the first update on
            self.opened = opening.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self.opened.__exit__(*error)

    # ---- updates

    @contextmanager
    def epoch(self, epoch: int) -> Iterator[Callable[[Update, UpdateBatches], None]]:
        """Yield the hook for an epoch, counted from 0, which may have begun before the run was resumed."""
        self.epoch_started = time.perf_counter()
        plan = self.state.plan
        with Bar(initial=self.state.progress.updates, total=plan.updates_in(epoch),
                 desc=f'epoch {epoch + 1}/{plan.epochs}', unit='update') as bar:

            def after_update(update: Update, batches: UpdateBatches) -> None:
                self.after_update(epoch, update, batches)
                self.show_progress(epoch, batches.update, bar)
                self.save_if_due()

            yield after_update
        self.epoch_trained = time.perf_counter()

    def after_update(self, epoch: int, update: Update, batches: UpdateBatches) -> None:
        """Count an update. Raises Diverged after too many that were skipped."""
        progress = self.state.progress
        seconds = batches.seconds
        if update.finite:
            sampler = self.data.train.batch_sampler
            indices = sampler.indices_of_update(progress.updates, update.images, self.cfg.ACCUMULATE_STEPS)
            self.state.margins.add(indices, update.margins)
        progress.add(update, self.state.update_flop(update.images), seconds, batches.waited)
        self.guard(epoch, update)
        self.state.clock.add(seconds)
        if self.cfg.TIME_BUDGET:
            elapsed = largest(self.state.clock.elapsed)
            if elapsed - self.plan_revised > 60 * self.cfg.TIME_BUDGET / PLAN_REVISIONS:
                self.plan_revised = elapsed
                revise(self.state.plan, self.cfg.TIME_BUDGET, self.state.clock, batches.update)

    def guard(self, epoch: int, update: Update) -> None:
        """Count an update that was skipped. Raises Diverged, naming the images, after MAX_SKIPPED in a row.

        float16 begins with a scale that is too large for the gradients and halves it at each that overflows; as long as
        it is at least 1, such updates are counted as skipped but not as in a row.
        """
        progress = self.state.progress
        if update.finite:
            progress.skipped_in_row = 0
            return
        progress.skipped += 1
        finite_loss = math.isfinite(update.loss)
        if finite_loss and self.state.scaler.is_enabled() and self.state.scaler.get_scale() >= 1:
            return
        progress.skipped_in_row += 1
        what = f'the norm of the gradient became {update.norm}' if finite_loss else f'the loss became {update.loss}'
        if progress.skipped_in_row == 1:
            Bar.write(f'epoch {epoch + 1}, update {progress.updates}: {what}, so the update is skipped')
        whole_epoch = progress.updates == self.state.plan.updates_per_epoch and not progress.norms.count
        if progress.skipped_in_row < MAX_SKIPPED and not whole_epoch:
            return
        sampler = self.data.train.batch_sampler
        indices = sampler.indices_of_update(progress.updates - 1, update.images, self.cfg.ACCUMULATE_STEPS)
        names = [self.data.train.dataset.samples[index][0] for index in indices]
        more = f' and {len(names) - NAMED_FILES} more' if len(names) > NAMED_FILES else ''
        raise Diverged(f'{what} in epoch {epoch + 1}, update {progress.updates}, and {progress.skipped_in_row} updates '
                       'in a row had to be skipped: lower LR, or look at the images of that update: '
                       + ', '.join(names[:NAMED_FILES]) + more)

    def show_progress(self, epoch: int, number: int, bar: Bar) -> None:
        """Move the progress bar, and once give a forecast; `number` updates of the run are over."""
        progress = self.state.progress
        plan = self.state.plan
        seconds_left = self.state.clock.seconds_left(plan, number)
        typical = progress.seconds > FORECAST_AFTER or progress.updates == plan.updates_in(epoch)
        if not self.forecast_given and seconds_left is not None and typical:
            self.forecast_given = True
            Bar.write(self.forecast(seconds_left))
        bar.total = plan.updates_in(epoch)
        bar.set_postfix_str(
            f'loss {progress.losses.avg:.3f}, lr {self.state.learning_rate:.1e}, '
            f'{progress.images / progress.seconds:.1f} img/s, waiting {progress.waited / progress.seconds:.0%}, '
            f'whole run {format_duration(seconds_left)} left', refresh=False)
        bar.update()

    def forecast(self, seconds_left: float) -> str:
        """Return a line on how long the run takes, and what shortens a long one."""
        text = f'forecast: {format_duration(seconds_left)} until the end of the run, on this machine'
        flop = self.state.plan.updates * self.state.update_flop(self.cfg.BATCH_SIZE * self.cfg.ACCUMULATE_STEPS)
        if flop:
            text += f' ({flop / 1e15:.2g} PFLOP for the whole run)'
        if seconds_left > LONG_RUN and not self.cfg.TIME_BUDGET:
            small = tuple(max(16, side // 32 * 16) for side in self.cfg.IMG_SIZE)
            text += (f'; shorter with a TIME_BUDGET in minutes, with fewer EPOCHS (now {self.cfg.EPOCHS}), with '
                     f'IMG_SIZE = {small} (about a quarter of it), or on a machine with a GPU')
        return text

    # ---- epochs

    def after_epoch(self, epoch: int, results: dict[str, dict]) -> None:
        """Write down an epoch, counted from 0: its row, checkpoints, plots, page.

        `results` are those of train.evaluate, empty where the epoch was not validated.
        """
        state = self.state
        done = epoch * state.plan.updates_per_epoch + state.progress.updates
        seconds = time.perf_counter() - self.epoch_started
        self.history.append(epoch_row(epoch, state, results, seconds))
        state.progress = Progress()  # the next epoch begins
        if results:
            best = self.save_best(results)
            if out_of_patience(self.history, self.cfg.PATIENCE, self.cfg.BEST_BY):
                state.plan.end_after(done)
            if RANK == 0:
                write_epoch(self.facts, state, self.data, self.out, self.history, best)
                self.page.after_epoch(self.history)
            state.clock.add_validation(time.perf_counter() - self.epoch_trained)
        self.track(self.history[-1])
        print_epoch(self.history[-1], state.plan.epochs, state.clock.seconds_left(state.plan, done))
        if len(self.history) < state.plan.epochs:
            self.save_if_due()
        else:
            self.save_last()

    # ---- checkpoints

    def save_last(self) -> None:
        """Write last.pth, which the first of several processes does."""
        if RANK == 0:
            checkpoint.save_last(self.out, {**self.facts, 'best': best_of(self.history, self.cfg.BEST_BY),
                                            'history': self.history, **self.state.state_dict()})
        self.saved_at = time.monotonic()

    def save_best(self, results: dict[str, dict]) -> dict | None:
        """Write best.pth if the epoch that has just ended is the best so far.

        Returns the results of its best weights, with what is known of outliers, or None.
        """
        best = best_of(self.history, self.cfg.BEST_BY)
        if RANK > 0 or best is None or best['epoch'] < len(self.history):
            return None
        chosen = results[best['weights']]
        chosen['outliers'] = fit_outliers(chosen['outputs'].features)
        net = self.state.weights()[best['weights']]
        checkpoint.save(self.out / 'best.pth', {**self.facts, 'best': best, 'history': self.history,
                                                'state_dict': net.state_dict(), 'outliers': chosen['outliers']})
        return chosen

    def save_if_due(self) -> None:
        """Save if SAVE_EVERY_MINUTES are over or a signal came to any process; then, after a signal, raise Stopped."""
        due = time.monotonic() - self.saved_at > 60 * self.cfg.SAVE_EVERY_MINUTES
        signum = int(largest(self.stop.signum or 0))
        if signum or (due and not self.state.progress.skipped_in_row):
            self.save_last()
        if signum:
            barrier()  # torchrun would end the one that still writes
            raise Stopped(signum)

    def between_batches(self) -> None:
        """Save if it is due, during a validation; not where other processes may be at other batches."""
        if WORLD_SIZE == 1:
            self.save_if_due()
