"""The processes of a run: which one this is, and what they tell each other.

torchrun starts several processes; without torchrun there is one. Nothing here needs PyTorch.
"""
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
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
