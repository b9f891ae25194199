"""Cores and memory of this machine. Nothing here needs PyTorch."""
import ctypes
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from common.runtime.console import Bar
from common.runtime.errors import UserError
from common.runtime.processes import LOCAL_WORLD_SIZE

CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
THREADS = min(8, CORES)  # for work during which Pillow and hashlib release the GIL

# In a control group's folder: limit and use, in bytes, and the entry of memory.stat for cached files
_V1 = ('memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file')
_V2 = ('memory.max', 'memory.current', 'inactive_file')
_UNLIMITED = 2 ** 60  # cgroup v1 reports a number close to 2 ** 63 where there is no limit


def worker_count(value: int | str) -> int:
    """The number of worker processes that NUM_WORKERS stands for: 'auto' is one for each core, 8 at most; several
    processes of a run share the cores.
    """
    if value == 'auto':
        return min(8, max(1, CORES // LOCAL_WORLD_SIZE))
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


def memory_file(length: int) -> int:
    """Under Linux: the descriptor of a file of `length` zero bytes in memory, freed with the last process that has it.

    Memory alone limits it, where /dev/shm, which multiprocessing uses, often has 64 MB in a container, and is needed
    for the batches. (Many builds of Python lack os.memfd_create; the C library that PyTorch needs has the function.)
    Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    file = libc.memfd_create(b'images', 1)  # MFD_CLOEXEC
    if file < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        os.truncate(file, length)
    except OSError:
        os.close(file)
        raise
    return file


def free_memory(proc: Path = Path('/proc'), cgroups: Path = Path('/sys/fs/cgroup')) -> int | None:
    """Bytes of memory that this process may still take; None where the system does not say, as on macOS and Windows.

    The least of what the machine has available and of what is left below each limit of a control group: that of the
    process (a Slurm job, a systemd slice, a container) and of every group that contains it. `proc` and `cgroups` are
    where those file systems are mounted.
    """
    free = [_free_in_group(folder, *names) for folder, names in _memory_groups(proc, cgroups)]
    available = _number_after('MemAvailable:', proc / 'meminfo')
    if available is not None:
        free.append(1024 * available)
    return min((found for found in free if found is not None), default=None)


def _memory_groups(proc: Path, cgroups: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """(folder, names in it) of each control group that may limit the memory, some of which may not exist.

    In a container the group's path is often that of the host, and only the mount's root, the container's own group,
    can be seen.
    """
    try:
        lines = (proc / 'self' / 'cgroup').read_text().splitlines()
    except OSError:
        return
    for line in lines:  # hierarchy:controllers:/path
        _, controllers, path = line.split(':', 2)
        if not controllers or 'memory' in controllers.split(','):
            root, names = (cgroups / 'memory', _V1) if controllers else (cgroups, _V2)
            group = PurePosixPath(path.lstrip('/'))
            yield from ((root / above, names) for above in (group, *group.parents))


def _free_in_group(folder: Path, limit_name: str, used_name: str, cached_name: str) -> int | None:
    """Bytes left below a group's limit, with cached files as free; None where there is no limit or no such group."""
    try:
        limit, used = (int((folder / name).read_text()) for name in (limit_name, used_name))
    except (OSError, ValueError):  # 'max'
        return None
    cached = _number_after(cached_name, folder / 'memory.stat') or 0
    return max(0, limit - used + cached) if limit < _UNLIMITED else None


def _number_after(name: str, file: Path) -> int | None:
    """The number on the line of a file that begins with the word `name`; None where there is no such line or file."""
    try:
        lines = map(str.split, file.read_text().splitlines())
        return next((int(words[1]) for words in lines if words[:1] == [name]), None)
    except (OSError, ValueError, IndexError):
        return None


# Work for several threads at a time, with a progress bar

AT_A_TIME = 1000  # calls that are handed to the threads together: a million of them, waiting, take 2 GB


def map_in_threads(function: Callable, *columns: Sequence, desc: str, at_a_time: int | None = None) -> Iterator[Any]:
    """Yields function(*row) for each row of the columns, in order, as soon as it is there. `at_a_time` is AT_A_TIME, if
    not for results that are large.
    """
    step = at_a_time or AT_A_TIME
    with ThreadPoolExecutor(THREADS) as pool, Bar(total=len(columns[0]), desc=desc, unit='img') as bar:
        for start in range(0, len(columns[0]), step):
            for result in pool.map(function, *(column[start:start + step] for column in columns)):
                bar.update()
                yield result
