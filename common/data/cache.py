"""Pictures at the network's size, decoded once and kept for all epochs: in memory, or in a file for later runs too.

They are kept as they are before anything random happens to them, so a cache makes training faster, nothing else.
"""
import hashlib
import json
import multiprocessing
import os
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.contrib.concurrent import thread_map

from common.data.folders import stamp
from common.data.images import BadImage, open_image
from common.runtime.console import Bar
from common.runtime.errors import UserError
from common.runtime.files import locked, replacing, writable_folder, write_json
from common.runtime.machine import THREADS, free_memory

FOLDER = Path('.cache')


class Pictures:
    """A function from a path to its picture at the network's size: uint8 RGB, as `fit` made it of the decoded file.

    `size` is (height, width) in pixels. A JPEG may be decoded at a fraction of its size, but to no side smaller than
    `least`. Until keep() was called, and for paths that it was not told of, every call decodes the file.
    """

    def __init__(self, fit, size, least):
        self.fit, self.size, self.least = fit, tuple(size), least
        self.array, self.slots = None, {}

    def __call__(self, path):
        slot = self.slots.get(str(path))
        if slot is None:
            return self.fit(open_image(path, self.least))
        return Image.fromarray(self.array[slot])

    def __getstate__(self):  # a spawned loader worker opens the file instead of getting a copy of it
        file = getattr(self.array, 'filename', None)
        return {**vars(self), 'array': file and (file, self.array.shape)}

    def __setstate__(self, state):
        vars(self).update(state)
        self.array = self.array and np.memmap(self.array[0], np.uint8, 'r', shape=self.array[1])

    def keep(self, paths, where, kind=''):
        """Read every file once and return {path: what is wrong with it} of those that are no pictures.

        `where` is 'ram', 'disk' or None: nowhere. What FOLDER has of an earlier run, the picture or only that it can be
        read, is good for as long as the file keeps size and time of change; what could not be read is tried again.
        `kind`, a text, is for caches that must not be mixed up.
        """
        key = json.dumps([kind, self.size, os.path.abspath(os.path.commonpath(paths))])
        file = FOLDER / hashlib.sha256(key.encode()).hexdigest()[:16]
        if where == 'disk':
            return self._keep_on_disk(paths, file.with_suffix('.pictures'))
        if where is None:
            return self._check(paths, file.with_suffix('.checked'))
        array = np.empty((len(paths), *self.size, 3), np.uint8)
        bad = self._read(paths, range(len(paths)), array)
        self.array = array
        self.slots = {path: slot for slot, path in enumerate(paths) if path not in bad}
        return bad

    def _check(self, paths, file):
        """The file is JSON, {path: [size, time of change]} of the readable ones."""
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

    def _read(self, paths, slots, array):
        def read(path, slot):
            try:
                picture = self(path)
            except BadImage as error:
                return str(error)
            if array is not None:
                array[slot] = picture
            return None

        problems = thread_map(read, paths, slots, max_workers=THREADS, tqdm_class=Bar, desc='reading pictures',
                              unit='img')
        return {path: problem for path, problem in zip(paths, problems, strict=True) if problem}

    def _keep_on_disk(self, paths, file):
        """The file: uint8 pictures, then as JSON {path: [size, time of change, problem or None]} in their order."""
        writable_folder(FOLDER, 'CACHE')
        with locked(f'{file}.lock'):  # two runs may want the same
            stamps = {path: stamp(path) for path in paths}
            index, _ = read_index(file, self.size)
            if {path: entry[:2] for path, entry in index.items()} != stamps:
                self._write(file, paths, stamps)
            index, self.array = read_index(file, self.size)
        self.slots = {path: slot for slot, (path, entry) in enumerate(index.items()) if not entry[2]}
        bad = [path for path in index if path not in self.slots]
        return self._read(bad, range(len(bad)), None)

    def _write(self, file, paths, stamps):
        """Make the file anew; pictures whose files did not change are copied."""
        old, pixels = read_index(file, self.size)
        known = {path: slot for slot, (path, entry) in enumerate(old.items()) if stamps.get(path) == entry[:2]}
        missing = [slot for slot, path in enumerate(paths) if path not in known]
        check_room('disk', len(paths), self.size, shutil.disk_usage(FOLDER).free)
        with replacing(file) as aside:
            reserve(aside, len(paths) * self.size[0] * self.size[1] * 3)
            array = np.memmap(aside, np.uint8, 'r+', shape=(len(paths), *self.size, 3))
            for slot, path in enumerate(paths):
                if path in known:
                    array[slot] = pixels[known[path]]
            bad = {path: old[path][2] for path in known} | self._read([paths[slot] for slot in missing], missing, array)
            array.flush()
            del array, pixels  # Windows replaces no file that is mapped
            with open(aside, 'ab') as out:
                index = json.dumps({path: [*stamps[path], bad.get(path)] for path in paths}).encode()
                out.write(index + len(index).to_bytes(8, 'little'))


def reserve(file, length):
    """Make a file of so many bytes; on a full disk OSError, where a mapped file would crash later."""
    with open(file, 'wb') as out:
        if hasattr(os, 'posix_fallocate'):
            os.posix_fallocate(out.fileno(), 0, length)
        out.truncate(length)


def read_index(file, size):
    """({path: [size, time, problem]}, the pictures) of a cache file; ({}, None) where there is no whole one."""
    try:
        with open(file, 'rb') as content:
            content.seek(-8, os.SEEK_END)
            end = content.tell()
            length = int.from_bytes(content.read(), 'little')
            content.seek(end - length)
            index = json.loads(content.read(length))
        if end - length != len(index) * size[0] * size[1] * 3 or any(
                not isinstance(entry, list) or len(entry) != 3 for entry in index.values()):
            return {}, None
        return index, np.memmap(file, np.uint8, 'r', shape=(len(index), *size, 3))
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return {}, None


def choose_cache(wanted, count, size, workers):
    """Where CACHE = `wanted` puts `count` pictures of `size`: 'ram', 'disk' or None; the reason is printed.

    'auto' is 'ram' where they take no more than a quarter of the free memory. Raises UserError where there is no room.
    """
    shared = not workers or multiprocessing.get_start_method() == 'fork'  # else each worker would get a copy
    free = free_memory()
    if wanted == 'auto':
        wanted = 'ram' if shared and free is not None and count * size[0] * size[1] * 3 <= free / 4 else None
        if wanted is None:
            why = 'too little of it is free' if shared else 'on this system each loader worker would need a copy'
            print(f"CACHE = 'auto' keeps no pictures in memory, {why}: 'disk' may make training faster")
    elif wanted == 'ram':
        if not shared:
            raise UserError("CACHE = 'ram': on this system each loader worker would need a copy: choose 'disk' or None")
        check_room(wanted, count, size, free)
    return wanted


def check_room(where, count, size, free):
    """Raise UserError unless `count` pictures go into `free` bytes (None: unknown)."""
    needed = count * size[0] * size[1] * 3
    if free is not None and needed > 0.9 * free:
        raise UserError(f"CACHE = {where!r} needs {needed / 2 ** 30:.1f} GiB for {count} pictures, but "
                        f"{free / 2 ** 30:.1f} GiB are free: choose {'None' if where == 'disk' else repr('disk')} or a "
                        'smaller IMG_SIZE')
