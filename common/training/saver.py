"""When checkpoints are written: last.pth by the clock, on a signal and at the end, best.pth when it improves."""
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from common.data.build import Data
from common.evaluation.outliers import fit_outliers
from common.runtime.distributed import barrier, largest, on_first
from common.runtime.errors import Stopped
from common.runtime.files import locked, writable_folder
from common.runtime.ranks import RANK
from common.runtime.signals import StopRequest
from common.settings import Settings
from common.training import checkpoint
from common.training.history import best_of, describe_run
from common.training.state import TrainState
from models import state_dict_at


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
