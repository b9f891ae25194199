"""Which of the processes of a run this one is, as torchrun says; without torchrun there is one. No PyTorch here."""
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import TypeVar

from common.runtime.errors import extra

Value = TypeVar('Value')

LAUNCHED = 'TORCHELASTIC_RUN_ID' in os.environ  # by torchrun


def _number(name: str, alone: int) -> int:
    return int(os.environ[name]) if LAUNCHED else alone


RANK, WORLD_SIZE = _number('RANK', 0), _number('WORLD_SIZE', 1)                          # of all processes
LOCAL_RANK, LOCAL_WORLD_SIZE = _number('LOCAL_RANK', 0), _number('LOCAL_WORLD_SIZE', 1)  # of those on this machine
RESTARTS = _number('TORCHELASTIC_RESTART_COUNT', 0)                                      # after a process was lost


# Signals that ask a run to stop, and worker processes that must not outlive it

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


# What the processes of a run tell each other, trivial in a process alone

def _torchrun() -> ModuleType:
    with extra('torchrun'):
        from extras import torchrun  # needs PyTorch, which mean_std.py and makedata.py can do without
    return torchrun


def process_group(use_gpu: bool | str) -> AbstractContextManager:
    """Inside `with` the processes can talk to each other. `use_gpu` is USE_GPU."""
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
    values = gather(value)  # copies
    return value if LOCAL_RANK == 0 else values[RANK - LOCAL_RANK]


def largest(value: float) -> float:
    """Return the largest value that a process has."""
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
