"""Errors that are not bugs. common.settings.run ends a script with one line for each."""
import errno
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake of the user's: one line that names the constant or the file and says what to do."""


class Stopped(Exception):
    """The end of a run that a signal asked to stop. Its argument is the signal's number; the run's state is saved."""


def lost_peer(error: BaseException) -> bool:
    """Return whether an error says that another process of a distributed run could not be reached."""
    if any('DistError' in kind.__name__ for kind in type(error).__mro__):
        return True
    return any(word in str(error) for word in ('gloo', 'Gloo', 'NCCL', 'by peer'))


@contextmanager
def explain_failures(less_memory: str, advice: str) -> Iterator[None]:
    """Turn errors of the machine, not of the code, into UserErrors that end with `advice`.

    `less_memory` says what makes the run take less memory. Other errors pass through with their tracebacks.
    """
    try:
        yield
    except UserError as error:
        # A UserError that comes from a worker process of a data loader begins with that process's traceback. Its last
        # line is 'common.runtime.errors.UserError: ' and the message.
        last_line = str(error).strip().splitlines()[-1]
        if last_line == str(error):
            raise error from None
        raise UserError(f'{last_line.partition(": ")[2]}; {advice}') from None
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, MemoryError) or "can't allocate memory" in text or 'out of memory' in text.lower():
            raise UserError(f'out of memory: {less_memory}; {advice}') from error
        if 'shared memory' in text:
            raise UserError('the memory that processes share (/dev/shm) ran out: in Docker --shm-size=2g or --ipc=host '
                            f'gives more, or lower NUM_WORKERS; {advice}') from error
        if text.startswith('DataLoader worker'):
            raise UserError(f'a worker process of the data loader died ({text.splitlines()[0]}): if memory ran out, '
                            f'lower NUM_WORKERS; {advice}') from error
        raise
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise UserError('too many files are open: allow more of them (ulimit -n 4096), or lower NUM_WORKERS; '
                            f'{advice}') from error
        raise


@contextmanager
def warn_instead() -> Iterator[None]:
    """Turn a UserError into a warning: a plot or table that fails must not stop training."""
    try:
        yield
    except UserError as error:
        print(f'warning: {error}')


@contextmanager
def extra(needed_by: str) -> Iterator[None]:
    """Turn a failing import of an extra into a UserError: its folder in extras/ may have been deleted.

    `needed_by` is what asked for the extra, for example the name of a constant.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = error.name or ''
        if missing.partition('.')[0] != 'extras':
            raise
        folder = missing.replace('.', '/')
        raise UserError(f'{needed_by} needs the folder {folder}, which is missing: restore it, or do without') from None
