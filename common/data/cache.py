"""Images at the network's size, decoded once for all epochs: in memory, or in a file for later runs too.

What is cached is the image before any random transform, so that a cache makes training faster and changes nothing else.
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
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.contrib.concurrent import thread_map

from common.data.folders import stamp
from common.data.images import BadImage, open_image
from common.runtime.console import Bar
from common.runtime.errors import UserError
from common.runtime.files import locked, replacing, writable_folder, write_json
from common.runtime.machine import THREADS, free_memory, memory_file

FOLDER = Path('.cache')


class ImageCache:
    """A function from a path to its image at the network's size: RGB, as `fit` made it of the decoded file.

    `size` is (height, width) in pixels. A JPEG may be decoded at a fraction of its size, but to no side smaller than
    `least`. Before load() is called, and for paths that it was not given, every call decodes the file.

    Worker processes of a data loader read the same copy of the pixels, whether they are forked or spawned.
    """

    def __init__(self, fit: Callable[[Image.Image], Image.Image], size: Iterable[int], least: int):
        self.fit, self.size, self.least = fit, tuple(size), least
        self._clear()

    def _clear(self) -> None:
        self.array: np.ndarray | None = None  # uint8 (image, height, width, RGB)
        self.source: tuple | None = None      # the arguments of open_array that give this array in any process
        self.slots: dict[str, int] = {}       # path: index in the array

    def __call__(self, path: str | Path) -> Image.Image:
        slot = self.slots.get(str(path))
        return self._decode(path) if slot is None else Image.fromarray(self.array[slot])

    def __getstate__(self) -> dict[str, Any]:
        """What a spawned worker process gets: where the pixels are, in place of the pixels."""
        return {**vars(self), 'array': None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.array = self.source and open_array(*self.source)

    def load(self, paths: list[str], where: str | None, kind: str = '') -> dict[str, str]:
        """Read every file once and return {path: problem} of those that are not readable images.

        `where` is 'ram', 'disk' or None: the images are not cached. What FOLDER has of an earlier run, the image or
        only that the file is readable, is valid for as long as the file has the same size and modification time;
        unreadable files are tried again. `kind`, a text, tells apart caches that must not be mixed up.
        """
        self._clear()  # Windows does not replace a file that is mapped
        key = json.dumps([kind, self.size, os.path.abspath(os.path.commonpath(paths))])
        file = FOLDER / hashlib.sha256(key.encode()).hexdigest()[:16]
        if where == 'disk':
            return self._load_from_disk(paths, file.with_suffix('.pictures'))
        if where is None:
            return self._check(paths, file.with_suffix('.checked'))
        return self._load_into_memory(paths)

    def _decode(self, path: str | Path) -> Image.Image:
        return self.fit(open_image(path, self.least))

    def _read(self, paths: list[str], slots: Iterable[int], array: np.ndarray | None) -> dict[str, str]:
        """Decode files into these slots of an array, if there is one; {path: problem} of the unreadable ones."""
        def read(path, slot):
            try:
                image = self._decode(path)
            except BadImage as error:
                return str(error)
            if array is not None:
                array[slot] = image
            return None

        problems = thread_map(read, paths, slots, max_workers=THREADS, tqdm_class=Bar, desc='reading images',
                              unit='img')
        return {path: problem for path, problem in zip(paths, problems, strict=True) if problem}

    def _check(self, paths: list[str], file: Path) -> dict[str, str]:
        """load() for None. The file is JSON: {path: [bytes, modification time]} of the readable ones."""
        stamps = {path: stamp(path) for path in paths}
        try:
            known = json.loads(file.read_text(encoding='utf-8'))
            missing = [path for path in paths if known.get(path) != stamps[path]]
        except (OSError, ValueError, AttributeError, RecursionError):  # no file, or no whole one
            missing = paths
        bad = self._read(missing, range(len(missing)), None)
        if len(missing) > len(bad):
            with suppress(UserError):  # the next run reads the files again, then
                write_json(writable_folder(FOLDER, 'CACHE') / file.name,
                           {path: stamps[path] for path in paths if path not in bad})
        return bad

    def _load_into_memory(self, paths: list[str]) -> dict[str, str]:
        """load() for 'ram'."""
        try:
            self.array, self.source = shared_array((len(paths), *self.size, 3))
        except OSError as error:
            raise UserError(f"CACHE = 'ram': no memory that worker processes share ({error}): choose 'disk' or None"
                            ) from None
        bad = self._read(paths, range(len(paths)), self.array)
        self.slots = {path: slot for slot, path in enumerate(paths) if path not in bad}
        return bad

    def _load_from_disk(self, paths: list[str], file: Path) -> dict[str, str]:
        """load() for 'disk'. The file: uint8 images, then the index that read_index() returns, as JSON."""
        writable_folder(FOLDER, 'CACHE')
        with locked(f'{file}.lock'):  # two runs may want the same
            stamps = {path: stamp(path) for path in paths}
            index = read_index(file, self.size)
            if {path: entry[:2] for path, entry in index.items()} != stamps:
                self._write_file(file, paths, stamps, index)
                index = read_index(file, self.size)
            self.source = (file.absolute(), (len(index), *self.size, 3))
            self.array = open_array(*self.source)
        self.slots = {path: slot for slot, (path, entry) in enumerate(index.items()) if not entry[2]}
        bad = [path for path in index if path not in self.slots]
        return self._read(bad, range(len(bad)), None)

    def _write_file(self, file: Path, paths: list[str], stamps: dict[str, list[int]], old: dict[str, list]) -> None:
        """Make the file anew; of the images in the `old` index, those whose files did not change are copied."""
        known = {path: slot for slot, (path, entry) in enumerate(old.items()) if stamps.get(path) == entry[:2]}
        missing = [slot for slot, path in enumerate(paths) if path not in known]
        shape = (*self.size, 3)
        check_room('disk', len(paths), self.size, shutil.disk_usage(FOLDER).free)
        with replacing(file) as aside:
            reserve(aside, len(paths) * math.prod(shape))
            array = np.memmap(aside, np.uint8, 'r+', shape=(len(paths), *shape))
            for slot, path in enumerate(paths):
                if path in known:
                    offset = known[path] * math.prod(shape)
                    array[slot] = np.fromfile(file, np.uint8, math.prod(shape), offset=offset).reshape(shape)
            bad = {path: old[path][2] for path in known} | self._read([paths[slot] for slot in missing], missing, array)
            array.flush()
            del array  # Windows does not move a file that is mapped
            with open(aside, 'ab') as out:
                index = json.dumps({path: [*stamps[path], bad.get(path)] for path in paths}).encode()
                out.write(index + len(index).to_bytes(8, 'little'))


def open_array(source: Path | ctypes.Array, shape: tuple[int, ...], mode: str = 'r') -> np.ndarray:
    """The uint8 array at the start of a file, or in memory that processes share."""
    if isinstance(source, Path):
        return np.memmap(source, np.uint8, mode, shape=shape).view(np.ndarray)  # a memmap takes longer to index
    return np.frombuffer(source, np.uint8).reshape(shape)


def shared_array(shape: tuple[int, ...]) -> tuple[np.ndarray, tuple]:
    """A new uint8 array in memory, and the arguments of open_array that give it in a worker process.

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
    """Make a file of so many bytes; on a full disk OSError, where a mapped file would crash later."""
    with open(file, 'wb') as out:
        if hasattr(os, 'posix_fallocate'):
            os.posix_fallocate(out.fileno(), 0, length)
        out.truncate(length)


def read_index(file: Path, size: tuple[int, int]) -> dict[str, list]:
    """{path: [bytes, modification time, problem or None]}, in the order of a cache file; {} where it is not whole."""
    try:
        with open(file, 'rb') as content:
            content.seek(-8, os.SEEK_END)
            end = content.tell()
            length = int.from_bytes(content.read(), 'little')
            content.seek(end - length)
            index = json.loads(content.read(length))
        if end - length != len(index) * size[0] * size[1] * 3 or any(
                not isinstance(entry, list) or len(entry) != 3 for entry in index.values()):
            return {}
        return index
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return {}


def choose_cache(wanted: str | None, count: int, size: tuple[int, int]) -> str | None:
    """Where CACHE = `wanted` puts `count` images of `size`: 'ram', 'disk' or None.

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
        raise UserError(f"CACHE = {where!r} needs {needed / 2 ** 30:.1f} GiB for {count} images, but "
                        f"{free / 2 ** 30:.1f} GiB are free: choose {'None' if where == 'disk' else repr('disk')} or a "
                        'smaller IMG_SIZE')
