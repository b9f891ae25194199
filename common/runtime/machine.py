"""Cores and memory of this machine. Nothing here needs PyTorch."""
import ctypes
import mmap
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from common.runtime.console import Bar
from common.runtime.errors import UserError
from common.runtime.processes import LOCAL_WORLD_SIZE

try:
    import resource
except ImportError:  # Windows has no such limits.
    resource = None

CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
THREADS = min(8, CORES)  # for work during which Pillow and hashlib release the interpreter's lock (GIL)


# ---- worker processes and memory -------------------------------------------------------------------------------------

def worker_count(value: int | str) -> int:
    """Return the number of worker processes that NUM_WORKERS = `value` stands for.

    'auto' is one for each core, at most 8. Several processes of a run share the cores. Raises UserError.
    """
    if value == 'auto':
        return min(8, max(1, CORES // LOCAL_WORLD_SIZE))
    if isinstance(value, str) or value < 0:
        raise UserError(f"NUM_WORKERS = {value!r}: give 'auto' or a number from 0")
    return value


SHARED_MEMORY = Path('/dev/shm')  # Linux: where processes share memory, and have their semaphores as files
_SEMAPHORES = 12  # of a pool of processes or a loader, with some to spare
_SEMAPHORES_PER_PROCESS = 5
_DESCRIPTORS = 24  # that the process opens while it works
_DESCRIPTORS_PER_PROCESS = 5


def lacking_for_processes(processes: int, pools: int = 1, shared_bytes: int = 0, shared_pieces: int = 0) -> str:
    """Return what the system lacks for worker processes in so many pools, '' where it has enough.

    They hand over up to `shared_bytes` at a time in shared memory, as `shared_pieces` pieces. What is not noticed
    before they start ends in a crash, or makes them wait for ever.
    """
    semaphores = _SEMAPHORES * pools + _SEMAPHORES_PER_PROCESS * processes
    needed = semaphores * mmap.PAGESIZE + shared_bytes
    room = shared_memory_room()
    if room is not None and room < needed:
        return (f'{SHARED_MEMORY} has room for {room / 2 ** 20:.1f} MiB, and worker processes need '
                f'{needed / 2 ** 20:.1f} (in Docker --shm-size=2g or --ipc=host gives more)')
    needed = _DESCRIPTORS + _DESCRIPTORS_PER_PROCESS * processes + shared_pieces
    if not may_open(needed):
        return f'worker processes need {needed} open files, and fewer are allowed (ulimit -n 4096 allows more)'
    return ''


def shared_memory_room() -> int | None:
    """Return how many bytes go into the memory that processes share; None where nothing but memory limits it."""
    if sys.platform != 'linux':
        return None
    try:
        tempfile.TemporaryFile(dir=SHARED_MEMORY).close()
        status = os.statvfs(SHARED_MEMORY)
    except OSError:  # It is missing, full or read-only.
        return 0
    if not status.f_blocks:  # It was mounted without a limit.
        return None
    return status.f_bavail * status.f_frsize


def may_open(count: int) -> bool:
    """Return whether this process may open so many more files. The limit is raised as far as the system allows."""
    if resource is None:
        return True
    limit, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        needed = len(os.listdir('/dev/fd')) + count
    except OSError:
        needed = count
    if limit == resource.RLIM_INFINITY or needed <= limit:
        return True
    if highest != resource.RLIM_INFINITY and needed > highest:
        return False
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, highest))
    return True


def retain_freed_memory() -> None:
    """Let the process keep freed memory for its next step instead of returning it to the system (Linux only).

    By default glibc returns large blocks at once. The next training step on a CPU then waits for up to 130,000 page
    faults, a tenth of its time, and a blur in a worker process takes eight times as long. The peak use of memory does
    not change.
    """
    if platform.libc_ver()[0] == 'glibc':
        libc = ctypes.CDLL('libc.so.6')
        libc.mallopt(-4, 0)   # M_MMAP_MAX: no block gets a mapping of its own.
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: the top of the heap is not handed back.


def memory_file(length: int) -> int:
    """Return the descriptor of a file of `length` zero bytes in memory (Linux only). Raises OSError.

    The file is freed with the last process that holds it. It is limited by memory alone, unlike files in /dev/shm: a
    container often has 64 MB of those, and multiprocessing needs them for batches. Many builds of Python lack
    os.memfd_create, so the C library is called.
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
    """Return the bytes of memory that this process may still take, or None where the system does not say.

    macOS and Windows do not. Linux says what the machine has available, and each control group has a limit of its own:
    that of the process (a Slurm job, a systemd slice, a container) and every group that contains it. The least counts.
    `proc` and `cgroups` are where those file systems are mounted.
    """
    limits = [_free_in_group(folder, files) for folder, files in _memory_groups(proc, cgroups)]
    available = _number_after('MemAvailable:', proc / 'meminfo')
    if available is not None:
        limits.append(1024 * available)
    return min((limit for limit in limits if limit is not None), default=None)


class _GroupFiles(NamedTuple):
    """Where a version of control groups keeps what it says about memory."""
    limit: str   # file with the limit in bytes
    used: str    # file with the use in bytes
    cached: str  # entry of the file memory.stat: bytes of cached files, which are freed when they are needed


_CGROUP_V1 = _GroupFiles('memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file')
_CGROUP_V2 = _GroupFiles('memory.max', 'memory.current', 'inactive_file')
_UNLIMITED = 2 ** 60  # bytes; version 1 reports a number close to 2 ** 63 where there is no limit


def _memory_groups(proc: Path, cgroups: Path) -> Iterator[tuple[Path, _GroupFiles]]:
    """Yield the folder of each control group that may limit the memory, and the names in it. Some may not exist.

    In a container the group's path is often that of the host. Only the root of the mount can be seen then; it is the
    container's own group.
    """
    try:
        lines = (proc / 'self' / 'cgroup').read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(':', 2)  # hierarchy:controllers:/path
        if not controllers:
            root = cgroups
            files = _CGROUP_V2
        elif 'memory' in controllers.split(','):
            root = cgroups / 'memory'
            files = _CGROUP_V1
        else:
            continue
        group = PurePosixPath(path.lstrip('/'))
        for group_or_parent in (group, *group.parents):
            yield root / group_or_parent, files


def _free_in_group(folder: Path, files: _GroupFiles) -> int | None:
    """Return the bytes left below a group's limit, or None if it has no limit or does not exist."""
    try:
        limit = int((folder / files.limit).read_text())
        used = int((folder / files.used).read_text())
    except (OSError, ValueError):  # The limit may be the word 'max'.
        return None
    if limit >= _UNLIMITED:
        return None
    cached = _number_after(files.cached, folder / 'memory.stat') or 0
    return max(0, limit - used + cached)


def _number_after(name: str, file: Path) -> int | None:
    """Return the number on the line of a file that begins with the word `name`; None if the line or file is missing."""
    try:
        for line in file.read_text().splitlines():
            words = line.split()
            if words[:1] == [name]:
                return int(words[1])
    except (OSError, ValueError, IndexError):
        return None
    return None


# ---- work for several threads ----------------------------------------------------------------------------------------

AT_A_TIME = 1000  # calls that are handed to the threads together; a million waiting calls would take 2 GB


def map_in_threads(function: Callable, *columns: Sequence, desc: str, at_a_time: int | None = None) -> Iterator[Any]:
    """Yield function(*row) for each row of the columns, in order, with a progress bar that `desc` describes.

    `at_a_time` calls are handed to the threads together, AT_A_TIME unless given; large results want fewer.
    """
    step = at_a_time or AT_A_TIME
    with ThreadPoolExecutor(THREADS) as pool, Bar(total=len(columns[0]), desc=desc, unit='img') as bar:
        for start in range(0, len(columns[0]), step):
            for result in pool.map(function, *(column[start:start + step] for column in columns)):
                bar.update()
                yield result
