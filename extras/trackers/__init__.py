"""The curves of a run in another program."""
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from common.runtime.errors import UserError

TRACKERS = ('tensorboard', 'wandb', 'trackio')
PROJECT = 'volo'                   # where wandb and trackio collect the runs
GROUPS = ('train_', 'raw_', 'ema_')  # of columns: train_loss is drawn as train/loss

Log = Callable[[dict[str, float], int], None]  # values by name, and the epoch that they are of


def validate_tracker(name: str | None) -> None:
    """Raise UserError for an unknown tracker, or one that is not installed."""
    if name not in (None, *TRACKERS):
        raise UserError(f'TRACKER = {name!r}: choose {", ".join(map(repr, TRACKERS))} or None')
    if name and importlib.util.find_spec(name) is None:
        raise UserError(f'TRACKER = {name!r} is not installed: python -m pip install {name}')


@contextmanager
def tracking(name: str, settings: dict, out: Path, history: list[dict]) -> Iterator[Callable[[dict], None]]:
    """Yield a function to call with each new row of the log. The rows of `history` are sent at once, so that a run
    that was resumed is whole in the tracker.

    `name` is TRACKER, `settings` are those of the run. A tracker that cannot begin raises UserError; one that fails
    later is a warning.
    """
    try:
        if name == 'tensorboard':
            log, close = open_tensorboard(out)
        else:
            log, close = open_service(name, settings, out)
    except Exception as error:  # each service has errors of its own
        raise UserError(f'TRACKER = {name!r} cannot begin ({error}): log in to it, switch it to its offline '
                        'mode or set TRACKER = None') from error

    def attempt(action: Callable[[], None]) -> None:
        nonlocal working
        try:
            if working:
                action()
        except Exception as error:  # the training is worth more
            working = False
            print(f'warning: TRACKER = {name!r} failed, going on without ({type(error).__name__}: {error})')

    def track(row: dict) -> None:
        values = {column_name(name): value for name, value in row.items()
                  if name != 'epoch' and isinstance(value, (int, float))}
        attempt(lambda: log(values, row['epoch']))

    working = True
    for row in history:
        track(row)
    try:
        yield track
    finally:
        attempt(close)


def column_name(name: str) -> str:
    return next((name.replace('_', '/', 1) for group in GROUPS if name.startswith(group)), name)


def open_tensorboard(out: Path) -> tuple[Log, Callable[[], None]]:
    """What an earlier part of the run wrote into the folder is replaced, by TensorBoard when it reads it."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(out / 'tensorboard', purge_step=1)

    def log(values: dict[str, float], epoch: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, epoch)
        writer.flush()
    return log, writer.close


def open_service(name: str, settings: dict, out: Path) -> tuple[Log, Callable[[], None]]:
    """Open wandb or trackio, whose functions have the same names."""
    service = importlib.import_module(name)
    options = {'dir': out} if name == 'wandb' else {}
    service.init(project=PROJECT, name=out.name, config=settings, **options)
    return lambda values, epoch: service.log(values, step=epoch), service.finish
