"""Images at the network's size, decoded once for all epochs: in memory, or in a file for later runs too.

The cache holds an image before any random transform, so that it makes training faster and changes nothing else.
"""
import ctypes
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.data.folders import Files, Rows, Store
from common.data.images import BadImage
from common.runtime.disks import persistently, reading, regular
from common.runtime.errors import UserError
from common.runtime.files import drop_link, locked, no_link, writable_folder, writing
from common.runtime.machine import free_memory, map_in_threads, memory_file

CACHE_FOLDER = Path('.cache')
NOTED = 1000  # files that are read between two notes of what has been done, which a killed run leaves


class ImageCache:
    """A function: the path of a file -> its image at the network's size, RGB, as `fit` made it of the decoded file.

    `size` is (height, width) in pixels, `store` where the files lie. A JPEG may be decoded at a fraction of its size,
    but to no side smaller than `least`. Before load() is called, and for paths that it was not given, every call
    decodes the file.

    Worker processes of a data loader read the same copy of the pixels, whether they are forked or spawned.
    """

    def __init__(self, fit: Callable[[Image.Image], Image.Image], size: Iterable[int], least: int,
                 store: Store = Files):
        self.fit = fit
        self.size = tuple(size)
        self.least = least
        self.store = store
        self._clear()

    def _clear(self) -> None:
        self.array: np.ndarray | None = None  # uint8 (image, height, width, RGB)
        self.source: tuple | None = None      # the arguments of open_array that give this array in any process
        self.rows = Rows([])                  # of the array

    def __call__(self, path: str | Path) -> Image.Image:
        row = self.rows.get(str(path))
        return self._decode(path) if row is None else Image.fromarray(self.array[row])

    def __getstate__(self) -> dict[str, Any]:
        """Return what a spawned worker process gets: where the pixels are, in place of the pixels."""
        return {**vars(self), 'array': None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.source:
            self.array = open_array(*self.source)

    def load(self, paths: list[str], where: str | None, kind: str = '') -> dict[str, str]:
        """Read every file once and return {path: problem} of those that are not readable images.

        `where` is 'ram', 'disk' or None: the images are not cached. What .cache/ has of an earlier run, even one that
        was killed, the image or only that the file is readable, is valid for as long as the file has the same size and
        modification time; unreadable files are tried again. `kind`, a text, tells apart caches that must not be mixed
        up.
        """
        self._clear()
        folder = os.path.commonpath([min(paths), max(paths)])  # that of all of them
        key = json.dumps([kind, self.size, os.path.abspath(folder)])
        file = CACHE_FOLDER / hashlib.sha256(key.encode()).hexdigest()[:16]
        if where == 'disk':
            return self._load_from_disk(paths, file.with_suffix('.pictures'))
        if where is None:
            return self._check(paths, file.with_suffix('.checked'))
        return self._load_into_memory(paths)

    def _decode(self, path: str | Path) -> Image.Image:
        return self.fit(self.store.open(path, self.least))

    def _read(self, paths: list[str], array: np.ndarray | None = None,
              note: Callable[[list[tuple[int, str, str | None]]], None] = lambda done: None) -> dict[str, str]:
        """Decode files, into the rows of an array if there is one. Returns {path: problem} of the unreadable ones.

        `note` gets what is done, [(row, path, problem or None)], some at a time.
        """
        def read(row, path):
            try:
                image = self._decode(path)
            except BadImage as error:
                return str(error)
            if array is not None:
                array[row] = image
            return None

        bad = {}
        done = []
        for row, problem in enumerate(map_in_threads(read, range(len(paths)), paths, desc='reading images')):
            done.append((row, paths[row], problem))
            if problem:
                bad[paths[row]] = problem
            if len(done) == NOTED or row == len(paths) - 1:
                note(done)
                done = []
        return bad

    def _check(self, paths: list[str], file: Path) -> dict[str, str]:
        """Do what load() does for None. The file has [path, bytes, modification time] of the readable ones."""
        def note(done):
            with suppress(UserError, OSError):  # the next run reads the files again, then
                writable_folder(CACHE_FOLDER, 'CACHE')
                append_lines(file, ([path, *stamps[path]] for _, path, problem in done if not problem))

        with suppress(OSError):
            drop_link(file)
        known = {path: entry for path, *entry in read_lines(file, 3)}
        stamps = {}
        for path in paths:
            stamp = self.store.stamp(path)
            if known.get(path) != stamp:
                stamps[path] = stamp
        return self._read([*stamps], note=note)

    def _load_into_memory(self, paths: list[str]) -> dict[str, str]:
        """Do what load() does for 'ram'."""
        try:
            self.array, self.source = shared_array((len(paths), *self.size, 3))
        except OSError as error:
            raise UserError(f"CACHE = 'ram': no memory that worker processes share ({error}): choose 'disk' or None"
                            ) from None
        bad = self._read(paths, self.array)
        good = [row for row, path in enumerate(paths) if path not in bad]
        self.rows = Rows((paths[row] for row in good), good)
        return bad

    def _load_from_disk(self, paths: list[str], file: Path) -> dict[str, str]:
        """Do what load() does for 'disk'. The file has the images, and beside it lies a list of them (read_index)."""
        writable_folder(CACHE_FOLDER, 'CACHE')
        with locked(f'{file}.lock'):  # two runs may want the same
            with writing(file):
                drop_link(file)
                drop_link(file.with_suffix('.index'))
            stamps = {path: self.store.stamp(path) for path in paths}
            index, length = read_index(file, self.size)
            known = {path: index[path] for path in paths if path in index and index[path][1:3] == stamps[path]}
            if len(known) < len(paths):
                mostly_gone = length > 2 * len(known) or not known  # most of it is of files that are not there any more
                with writing(file):
                    removed = mostly_gone and remove(file)
                if removed:
                    known = {}
                    length = 0
                self._append(file, [path for path in paths if path not in known], stamps, length)
                index, length = read_index(file, self.size)
                known = {path: index[path] for path in paths}
            self.source = (file.absolute(), (length, *self.size, 3))
            self.array = open_array(*self.source)
        good = {path: entry[0] for path, entry in known.items() if not entry[3]}
        self.rows = Rows(good, good.values())
        return self._read([path for path, entry in known.items() if entry[3]])

    def _append(self, file: Path, paths: list[str], stamps: dict[str, list[int]], length: int) -> None:
        """Read files into new rows of the file, after the first `length`."""
        def note(done):
            array.flush()
            append_lines(file.with_suffix('.index'), (
                [path, length + row, *stamps[path], problem] for row, path, problem in done))

        row_bytes = math.prod((*self.size, 3))
        check_room('disk', len(paths), self.size, shutil.disk_usage(CACHE_FOLDER).free)
        with writing(file):
            reserve(file, (length + len(paths)) * row_bytes)
            array = np.memmap(file, np.uint8, 'r+', length * row_bytes, (len(paths), *self.size, 3))
            self._read(paths, array, note)


# ---- arrays that processes share ------------------------------------------------------------------------------------

def open_array(source: Path | ctypes.Array, shape: tuple[int, ...], mode: str = 'r') -> np.ndarray:
    """Return the uint8 array at the start of a file, or in memory that processes share."""
    if isinstance(source, Path):
        return np.memmap(source, np.uint8, mode, shape=shape).view(np.ndarray)  # a memmap takes longer to index
    return np.frombuffer(source, np.uint8).reshape(shape)


def shared_array(shape: tuple[int, ...]) -> tuple[np.ndarray, tuple]:
    """Return a new uint8 array in memory, and the arguments of open_array that give it in a worker process.

    The system frees the memory when no process has it any more, however they end. Raises OSError and UserError.
    """
    length = math.prod(shape)
    if sys.platform == 'linux':
        handle = memory_file(length)
        path = Path(f'/proc/{os.getpid()}/fd/{handle}')
        array = open_array(path, shape, 'r+')
        weakref.finalize(array, os.close, handle)
        return array, (path, shape)
    if os.name == 'posix':  # macOS: in a file without a name
        check_room('ram', shape[0], shape[1:3], shutil.disk_usage(tempfile.gettempdir()).free)
    memory = multiprocessing.RawArray('B', length)
    return open_array(memory, shape), (memory, shape)


def reserve(file: Path, length: int) -> None:
    """Give a file so many bytes; those that it has stay. On a full disk OSError, where a mapped one crashes later."""
    with open(file, 'ab', opener=no_link) as out:
        if hasattr(os, 'posix_fallocate'):
            os.posix_fallocate(out.fileno(), 0, length)
        out.truncate(length)


def remove(file: Path) -> bool:
    """Delete the images and their index. Returns False under Windows while another run has them open."""
    try:
        file.unlink(missing_ok=True)
    except PermissionError:
        return False
    file.with_suffix('.index').unlink(missing_ok=True)
    return True


# ---- what lies beside them: JSON lines that grow while work is done, so that a killed run has not worked in vain -----

def append_lines(file: Path, values: Iterable[list]) -> None:
    """Add a line for each value. Raises OSError."""
    lines = ''.join(f'{json.dumps(value)}\n' for value in values)
    if lines:
        with open(file, 'ab', opener=no_link) as out:
            out.write(f'\n{lines}'.encode())  # after a line that was cut off


def read_lines(file: Path, length: int) -> Iterator[list]:
    """Yield the values, lists of `length` that begin with a text; damaged lines are left out, no file has none.

    Raises DiskError: half a list would let new images take the place of those that the other half has.
    """
    try:
        with persistently(open, persistently(regular, file), 'rb') as lines, reading(file):
            for line in lines:
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(value, list) and len(value) == length and isinstance(value[0], str):
                    yield value
    except OSError:
        return


def read_index(file: Path, size: tuple[int, int]) -> tuple[dict[str, list], int]:
    """Return ({path: [row, bytes, modification time, problem or None]}, number of rows in use) of a file of images."""
    length = file.stat().st_size if file.exists() else 0
    rows, rest = divmod(length, math.prod((*size, 3)))
    index = {}
    if not rest:  # a file of another size is damaged
        for path, *entry in read_lines(file.with_suffix('.index'), 5):
            if isinstance(entry[0], int) and 0 <= entry[0] < rows:
                index[path] = entry
    return index, max((entry[0] + 1 for entry in index.values()), default=0)


def choose_cache(wanted: str | None, count: int, size: tuple[int, int]) -> str | None:
    """Return where CACHE = `wanted` puts `count` images of `size`: 'ram', 'disk' or None.

    'auto' is 'ram' where they take no more than a quarter of the free memory, else None, and the reason is printed.
    Raises UserError where there is no room.
    """
    free = free_memory()
    if wanted == 'auto':
        if free is not None and count * size[0] * size[1] * 3 <= free / 4:
            return 'ram'
        why = 'the system does not say how much of it is free' if free is None else 'too little of it is free'
        print(f"CACHE = 'auto' keeps no images in memory, {why}: 'disk' may make training faster")
        return None
    if wanted == 'ram':
        check_room(wanted, count, size, free)
    return wanted


def check_room(where: str, count: int, size: tuple[int, int], free: int | None) -> None:
    """Raise UserError unless `count` images of `size` go into `free` bytes (None: unknown)."""
    needed = count * size[0] * size[1] * 3
    if free is not None and needed > 0.9 * free:
        other = None if where == 'disk' else 'disk'
        raise UserError(f'CACHE = {where!r} needs {needed / 2 ** 30:.1f} GiB for {count} images, but '
                        f'{free / 2 ** 30:.1f} GiB are free: choose {other!r} or a smaller IMG_SIZE')
