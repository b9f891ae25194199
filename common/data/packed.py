"""Lists and maps of many paths in a few arrays.

Ordinary ones fill the memory of every worker process: whoever reads an object counts a reference in it, and so gets a
copy of its page of memory.
"""
import hashlib
import os
from collections.abc import Iterable, Sequence

import numpy as np


class Samples(Sequence):
    """Read-only [(path, class index), ...] of an image folder. `targets` are the class indices, int32."""

    def __init__(self, samples: Iterable[tuple[str, int]]):
        names, ends, targets = bytearray(), [], []
        for path, target in samples:
            names += os.fsencode(path)
            ends.append(len(names))
            targets.append(target)
        self.names = np.frombuffer(bytes(names), np.uint8)
        self.ends, self.targets = np.array(ends, np.int64), np.array(targets, np.int32)

    def __len__(self) -> int:
        return len(self.ends)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Samples) and all(map(
            np.array_equal, (self.names, self.ends, self.targets), (other.names, other.ends, other.targets)))

    def __getitem__(self, index: int | slice) -> tuple[str, int] | list[tuple[str, int]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]  # raises IndexError
        start = self.ends[number - 1] if number else 0
        return os.fsdecode(self.names[start:self.ends[number]].tobytes()), int(self.targets[number])


class Rows:
    """Read-only map from a text, such as a path, to a number, by default its place; in 16 bytes for each."""

    def __init__(self, texts: Iterable[str], numbers: Iterable[int] | None = None):
        digests = np.fromiter(map(_digest, texts), np.uint64)
        order = digests.argsort()
        self.digests = digests[order]
        self.numbers = order if numbers is None else np.fromiter(numbers, np.int64, len(order))[order]

    def get(self, text: str, default: int | None = None) -> int | None:
        place = self.digests.searchsorted(digest := _digest(text))
        return int(self.numbers[place]) if place < len(self.numbers) and self.digests[place] == digest else default


def _digest(text):
    """64 bits of a hash: of ten million texts, two have the same with a probability of 3e-6."""
    return np.uint64(int.from_bytes(hashlib.blake2b(os.fsencode(text), digest_size=8).digest(), 'little'))
