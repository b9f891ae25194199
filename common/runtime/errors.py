"""Errors that are not bugs. common.settings.run ends a script with one line for each."""
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake of the user's: one line that names the constant or the file and says what to do."""


def lost_peer(error: BaseException) -> bool:
    """Whether an error says that another process of a distributed run could not be reached."""
    kinds = ' '.join(kind.__name__ for kind in type(error).__mro__)
    return 'DistError' in kinds or any(word in str(error) for word in ('gloo', 'Gloo', 'NCCL', 'by peer'))


class Stopped(Exception):
    """A run was told to stop, by the signal whose number is the argument, and has saved its state."""


@contextmanager
def explain_failures(less_memory: str, advice: str) -> Iterator[None]:
    """Turn errors of the machine in the middle of a run, not of the code, into UserErrors that end with `advice`.

    `less_memory` says what takes less memory. Other errors pass through with their tracebacks.
    """
    try:
        yield
    except UserError as error:
        last = str(error).strip().splitlines()[-1]  # one from a worker process begins with its traceback
        raise (error if last == str(error) else UserError(f'{last.partition(": ")[2]}; {advice}')) from None
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, MemoryError) or "can't allocate memory" in text or 'out of memory' in text.lower():
            raise UserError(f'out of memory: {less_memory}; {advice}') from error
        if text.startswith('DataLoader worker'):
            raise UserError(f'a worker process of the data loader died ({text.splitlines()[0]}): if memory ran out, '
                            f'lower NUM_WORKERS; {advice}') from error
        raise


@contextmanager
def warn_instead() -> Iterator[None]:
    """A UserError inside is printed as a warning, and what comes after goes on: the work is worth more than a table."""
    try:
        yield
    except UserError as error:
        print(f'warning: {error}')


@contextmanager
def extra(needed_by: str) -> Iterator[None]:
    """Turn a failing import of an extra into a UserError: its folder in extras/ may have been deleted.

    `needed_by` is the constant, or what else it was, that asked for the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = error.name or ''
        if missing.partition('.')[0] != 'extras':
            raise
        folder = missing.replace('.', '/')
        raise UserError(f'{needed_by} needs {folder}, which is not there: get that folder back or do '
                        'without') from None
