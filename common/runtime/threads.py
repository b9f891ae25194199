"""Work for several threads at a time, with a progress bar."""
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from common.runtime.console import Bar
from common.runtime.machine import THREADS

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
