"""Cores and memory of this machine. Nothing here needs PyTorch."""
import ctypes
import os
import platform
from pathlib import Path

from common.runtime.errors import UserError

CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
THREADS = min(8, CORES)  # for work that Pillow and hashlib do outside Python's lock


def worker_count(value: int | str) -> int:
    """The number of worker processes that NUM_WORKERS stands for: 'auto' is one for each core, 8 at most."""
    if value == 'auto':
        return min(8, CORES)
    if isinstance(value, str) or value < 0:
        raise UserError(f"NUM_WORKERS = {value!r}: give 'auto' or a number from 0")
    return value


def retain_freed_memory() -> None:
    """Under Linux: let the process retain memory that is freed, for the next step, instead of returning it.

    By default glibc returns large blocks at once. On a CPU the next training step then waits for up to 130,000 page
    faults, a tenth of its time, and a blur in a worker process takes eight times as long. The peak stays what it was.
    Elsewhere nothing is done.
    """
    if platform.libc_ver()[0] == 'glibc':
        libc = ctypes.CDLL('libc.so.6')
        libc.mallopt(-4, 0)            # M_MMAP_MAX: no block gets a mapping of its own
        libc.mallopt(-1, -1)           # M_TRIM_THRESHOLD: the top of the heap is not handed back


def free_memory() -> int | None:
    """Bytes of memory that may still be taken, by this machine's or container's limit; None if it is unknown."""
    try:
        lines = Path('/proc/meminfo').read_text().splitlines()
        free = 1024 * int(next(line.split()[1] for line in lines if line.startswith('MemAvailable')))
    except (OSError, StopIteration):
        return None
    try:
        limit, used, stat = (Path('/sys/fs/cgroup', f'memory.{x}').read_text() for x in ('max', 'current', 'stat'))
        cached = next(int(line.split()[1]) for line in stat.splitlines() if line.startswith('inactive_file '))
        return min(free, int(limit) - int(used) + cached)
    except (OSError, ValueError, StopIteration):  # no container, or one without a limit
        return free
