"""Signals that ask a run to stop, and worker processes that must not outlive it."""
import multiprocessing
import os
import signal
import threading

from common.runtime.ranks import LAUNCHED, RANK

STOP_SIGNALS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name)]


class StopRequest:
    """Inside `with`, a first SIGINT (Ctrl-C), SIGTERM (a scheduler's) or SIGHUP (a terminal that is closed) is noted in
    `signum`, a second one kills. SIGHUP stays ignored under nohup.

    Under torchrun a second one is no impatience: it passes on what the terminal has sent already. It kills after half
    a minute. `answer` is what the first one is answered with.
    """

    def __init__(self, answer: str = 'saving, then leaving'):
        self.answer = answer
        self.signum: int | None = None
        self.handlers_before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self.handlers_before = {signum: signal.signal(signum, self.note) for signum in STOP_SIGNALS
                                    if signal.getsignal(signum) is not signal.SIG_IGN}
        return self

    def __exit__(self, *error):
        for signum, handler in self.handlers_before.items():
            signal.signal(signum, handler)

    def note(self, signum, frame) -> None:
        text = f'\n{signal.Signals(signum).name}: {self.answer}'
        if not LAUNCHED:
            text += '; once more leaves at once'
            for other in self.handlers_before:
                signal.signal(other, signal.SIG_DFL)
        if not self.signum and RANK == 0:
            os.write(2, f'{text}\n'.encode())  # print is not safe in a signal handler
        self.signum = signum



def leave_signals_to_parent() -> None:
    """In a worker process: a signal that reaches all processes of a job is for the one that trains.

    Of SIGTERM only the first one is: with a second, multiprocessing ends its children.
    """
    for signum in STOP_SIGNALS:
        if signum != signal.SIGTERM:
            signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *received: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def kill_workers() -> None:
    """Kill worker processes that an error has left behind: Python would wait for them for ever."""
    workers = multiprocessing.active_children()
    if workers and hasattr(signal, 'SIGCHLD'):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would take their deaths for an error
    for worker in workers:
        worker.kill()
