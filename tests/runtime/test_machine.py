"""common/runtime/machine.py: the memory that is free, below every limit that the process is under."""
import os
import sys
from pathlib import Path

import pytest

from common.runtime.machine import free_memory, memory_file

MB = 2 ** 20
HUGE = 9223372036854771712  # cgroup v1's word for no limit


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace('__', '.')).write_text(f'{content}\n')


def write_v1(folder, limit, used, cached):
    write(folder, memory__limit_in_bytes=limit, memory__usage_in_bytes=used,
          memory__stat=f'cache 7\ninactive_file 5\ntotal_inactive_file {cached}')


def write_v2(folder, limit, used, cached):
    write(folder, memory__max=limit, memory__current=used, memory__stat=f'anon 7\ninactive_file {cached}\nfile 9')


@pytest.fixture
def system(tmp_path):
    """A function that makes /proc and /sys/fs/cgroup with 1000 MB of memory and says what of it is free."""
    def free(cgroup, groups, write_group):
        write(tmp_path / 'proc', meminfo=f'MemTotal: 4096000 kB\nMemAvailable:    {1000 * 1024} kB\nBuffers: 1 kB')
        write(tmp_path / 'proc' / 'self', cgroup=cgroup)
        for name, numbers in groups.items():
            write_group(tmp_path / 'cgroup' / name, *numbers)
        return free_memory(tmp_path / 'proc', tmp_path / 'cgroup') / MB
    return free


V2 = '0::/user.slice/job_7/step_0'


@pytest.mark.parametrize('cgroup, groups, free', [
    (V2, {}, 1000),
    (V2, {'user.slice/job_7/step_0': (500 * MB, 300 * MB, 50 * MB)}, 250),
    (V2, {'user.slice/job_7': (500 * MB, 300 * MB, 0), 'user.slice/job_7/step_0': ('max', 300 * MB, 0)}, 200),
    (V2, {'user.slice': (900 * MB, 700 * MB, 0), 'user.slice/job_7': (400 * MB, 300 * MB, 0)}, 100),
    (V2, {'user.slice': (400 * MB, 400 * MB, 0), 'user.slice/job_7/step_0': (500 * MB, 300 * MB, 0)}, 0),
    (V2, {'user.slice/job_7': (400 * MB, 401 * MB, 0)}, 0),               # lowered below what is in use
    (V2, {'.': (600 * MB, 200 * MB, 0)}, 400),                            # a container: the path is the host's
    ('0::/', {'.': (600 * MB, 200 * MB, 0)}, 400),
    (V2, {'.': ('max', 200 * MB, 0), 'user.slice/job_70': (5 * MB, 0, 0)}, 1000),
    (V2, {'user.slice/job_7': (5000 * MB, 300 * MB, 0)}, 1000)])          # more than the machine has
def test_limits_of_control_groups(system, cgroup, groups, free):
    assert system(cgroup, groups, write_v2) == free


V1 = '11:cpu,cpuacct:/cpu_only\n4:memory:/slurm/uid_1/job_7\n1:name=systemd:/init\n0::/unified'


@pytest.mark.parametrize('cgroup, groups, free', [
    (V1, {}, 1000),
    (V1, {'memory/slurm/uid_1/job_7': (500 * MB, 300 * MB, 50 * MB)}, 250),
    (V1, {'memory/slurm/uid_1': (500 * MB, 400 * MB, 0), 'memory/slurm/uid_1/job_7': (HUGE, 300 * MB, 0)}, 100),
    (V1, {'memory': (HUGE, 300 * MB, 0), 'memory/slurm/uid_1/job_7': (HUGE, 0, 0)}, 1000),
    (V1, {'memory': (600 * MB, 200 * MB, 0)}, 400),
    (V1, {'memory/cpu_only': (MB, 0, 0), 'cpu_only': (MB, 0, 0)}, 1000),
    ('4:hugetlb,memory:/docker/0123', {'memory': (600 * MB, 200 * MB, 0)}, 400)])
def test_limits_of_control_groups_of_version_1(system, cgroup, groups, free):
    assert system(cgroup, groups, write_v1) == free


def test_free_memory_where_the_system_says_less(tmp_path):
    assert free_memory(tmp_path / 'proc', tmp_path / 'cgroup') is None  # macOS
    write(tmp_path / 'proc' / 'self', cgroup=V1)
    write_v1(tmp_path / 'cgroup' / 'memory', HUGE, 300 * MB, 0)
    assert free_memory(tmp_path / 'proc', tmp_path / 'cgroup') is None
    write_v1(tmp_path / 'cgroup' / 'memory' / 'slurm', 500 * MB, 300 * MB, 0)
    assert free_memory(tmp_path / 'proc', tmp_path / 'cgroup') == 200 * MB
    (tmp_path / 'cgroup' / 'memory' / 'slurm' / 'memory.stat').unlink()
    assert free_memory(tmp_path / 'proc', tmp_path / 'cgroup') == 200 * MB


@pytest.mark.skipif(sys.platform != 'linux', reason='Linux has files in memory')
def test_a_file_in_memory_is_in_no_folder():
    """Thus it ends with its processes, and the 64 MB that containers have in /dev/shm are no limit."""
    file = memory_file(5000)
    status = os.fstat(file)
    assert status.st_size == 5000 and status.st_nlink == 0 and not os.get_inheritable(file)
    assert not Path('/dev/shm').exists() or status.st_dev != os.stat('/dev/shm').st_dev
    os.close(file)
    with pytest.raises(OSError, match='Invalid argument'):
        memory_file(-1)


@pytest.mark.skipif(sys.platform != 'linux', reason='Linux says what is free')
def test_free_memory_is_less_than_there_is():
    assert 0 < free_memory() < 2 ** 50
