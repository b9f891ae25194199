"""Ctrl-C and other signals that stop a run, and worker processes, which must not outlive it."""
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from common.runtime.processes import LAUNCHED, RANK

STOP_SIGNALS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name)]


class StopRequest:
    """Whether a signal has asked the run to stop: inside `with`, the number of the first one is noted in `signum`.

    The signals are SIGINT (Ctrl-C), SIGTERM (from a scheduler) and SIGHUP (a terminal was closed). The first one is
    answered with the line `answer`; a second one kills. SIGHUP stays ignored under nohup. torchrun forwards a signal
    that the terminal has sent already, so a second one is ignored there. torchrun itself kills after half a minute.
    """

    def __init__(self, answer: str = 'saving, then leaving'):
        self.answer = answer
        self.signum: int | None = None
        self.handlers_before = {}

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self  # Python allows handlers in the main thread alone.
        for signum in STOP_SIGNALS:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                self.handlers_before[signum] = signal.signal(signum, self.note)
        return self

    def __exit__(self, *error):
        for signum, handler in self.handlers_before.items():
            signal.signal(signum, handler)

    def note(self, signum, frame) -> None:
        """Handle a signal."""
        text = f'\n{signal.Signals(signum).name}: {self.answer}'
        if not LAUNCHED:
            text += '; once more leaves at once'
            for other in self.handlers_before:
                signal.signal(other, signal.SIG_DFL)
        if not self.signum and RANK == 0:
            with suppress(OSError):  # standard error is closed
                os.write(2, f'{text}\n'.encode())  # print() is not safe in a signal handler.
        self.signum = signum


def leave_signals_to_parent() -> None:
    """Ignore the stop signals in a worker process: what reaches all processes of a job is for the one that trains.

    Only the first SIGTERM is ignored, because multiprocessing ends its children with a second one.
    """
    for signum in STOP_SIGNALS:
        if signum != signal.SIGTERM:
            signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *received: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def end_with_parent() -> None:
    """Let this worker process end as soon as its parent has, even if that was killed."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class OutOfTime(Exception):
    """The end of what processor_time() limits."""


@contextmanager
def processor_time(seconds: float) -> Iterator[None]:
    """Raise OutOfTime inside `with` when this process has computed for so long.

    That also interrupts a search for a regular expression. Windows, and threads other than the main one, have no such
    limit.
    """
    if not hasattr(signal, 'setitimer') or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*received) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def kill_workers() -> None:
    """Kill worker processes that an error has left behind, since Python would wait for them for ever."""
    workers = multiprocessing.active_children()
    if workers and hasattr(signal, 'SIGCHLD'):
        # PyTorch's handler would take the deaths of its workers for an error.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in workers:
        worker.kill()
