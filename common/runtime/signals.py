"""What reaches a run from outside: signals, memory that ends, workers that die."""
import os
import signal
import threading
from contextlib import contextmanager

import torch

from common.settings import Stopped, UserError


class StopRequest:
    """Inside `with`, a first SIGINT (Ctrl-C), SIGTERM (a scheduler's) or SIGHUP (a terminal that is closed) is noted in
    `signum`, a second one kills. SIGHUP stays ignored under nohup.
    """

    def __init__(self):
        self.signum, self.before = None, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            names = [name for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name)]
            self.before = {which: signal.signal(which, self.note) for which in (getattr(signal, n) for n in names)
                           if signal.getsignal(which) is not signal.SIG_IGN}
        return self

    def __exit__(self, *error):
        for which, handler in self.before.items():
            signal.signal(which, handler)

    def note(self, signum, frame):
        self.signum = signum
        for which in self.before:
            signal.signal(which, signal.SIG_DFL)
        text = f'\n{signal.Signals(signum).name}: saving, then leaving; once more leaves at once\n'
        os.write(2, text.encode())  # print is not safe here

    def obey(self):
        """Raise Stopped if a signal came."""
        if self.signum:
            raise Stopped(self.signum)


@contextmanager
def in_words(less, advice):
    """Turns errors that a machine or its files cause in the middle of a run into UserErrors that end with `advice`.

    `less` says what takes less memory.
    """
    try:
        yield
    except UserError as error:
        text = str(error).strip().splitlines()[-1]  # one from a loader worker begins with a traceback
        raise (error if text == str(error) else UserError(f'{text.partition(": ")[2]}; {advice}')) from None
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text \
                or 'out of memory' in text.lower():
            raise UserError(f'out of memory: {less}; {advice}') from error
        if text.startswith('DataLoader worker'):
            raise UserError(f'a process that reads pictures died ({text.splitlines()[0]}): if memory ran out, lower '
                            f'NUM_WORKERS; {advice}') from error
        raise
