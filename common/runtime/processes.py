"""The processes of a run: which one this is, the signals that stop it, what the processes tell each other.

torchrun starts several processes; without torchrun there is one. Nothing here needs PyTorch.
"""
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import TypeVar

from common.runtime.errors import extra

Value = TypeVar('Value')

LAUNCHED = 'TORCHELASTIC_RUN_ID' in os.environ  # whether torchrun started this process


def _from_torchrun(name: str, alone: int) -> int:
    """Return the number that torchrun has put into an environment variable; `alone` without torchrun."""
    return int(os.environ[name]) if LAUNCHED else alone


RANK = _from_torchrun('RANK', 0)                          # this process's number among all processes
WORLD_SIZE = _from_torchrun('WORLD_SIZE', 1)              # the number of all processes
LOCAL_RANK = _from_torchrun('LOCAL_RANK', 0)              # this process's number among those on this machine
LOCAL_WORLD_SIZE = _from_torchrun('LOCAL_WORLD_SIZE', 1)  # the number of processes on this machine
RESTARTS = _from_torchrun('TORCHELASTIC_RESTART_COUNT', 0)  # how often a process was lost and all were started again


# ---- signals, and worker processes that must not outlive a run -------------------------------------------------------

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


# ---- what the processes of a run tell each other; a process alone has nothing to tell --------------------------------

def _torchrun() -> ModuleType:
    # It is imported here because it needs PyTorch, which mean_std.py and makedata.py do without.
    with extra('torchrun'):
        from extras import torchrun
    return torchrun


def process_group(use_gpu: bool | str) -> AbstractContextManager:
    """Return a context inside which the processes can talk to each other. `use_gpu` is USE_GPU."""
    return _torchrun().process_group(use_gpu) if LAUNCHED else nullcontext()


def from_first(value: Value) -> Value:
    """Return the value that the first process has, in every process."""
    return _torchrun().broadcast(value) if LAUNCHED else value


def on_first(function: Callable[..., Value], *args) -> Value:
    """Return the value of a function that only the first process calls, in every process."""
    return from_first(function(*args) if RANK == 0 else None)


def gather(value: Value) -> list[Value]:
    """Return the values of all processes, by rank."""
    return _torchrun().gather(value) if LAUNCHED else [value]


def on_each_machine(function: Callable[..., Value], *args) -> Value:
    """Return the value of a function that one process of each machine calls, in every process of that machine."""
    value = function(*args) if LOCAL_RANK == 0 else None
    values = gather(value)
    if LOCAL_RANK == 0:
        return value  # values[RANK] is a copy.
    return values[RANK - LOCAL_RANK]


def largest(value: float) -> float:
    """Return the largest of the values of all processes."""
    return _torchrun().largest(value) if LAUNCHED else value


def add_up(tensor):
    """Return the sum of a tensor over all processes."""
    return _torchrun().add_up(tensor) if LAUNCHED else tensor


def barrier() -> None:
    """Wait for all processes."""
    largest(0)


def claim_failure() -> bool:
    """Return whether this process is the first of the run to fail, whose message is the one to print."""
    return not LAUNCHED or _torchrun().claim_failure()
