"""Updates without a finite loss and gradient: skipped, counted, and after too many of them the end of the run."""
import math

from torch.utils.data import DataLoader

from common.data.loaders import image_paths
from common.runtime.console import Bar
from common.runtime.errors import UserError
from common.settings import Settings
from common.training.state import TrainState, Update

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
