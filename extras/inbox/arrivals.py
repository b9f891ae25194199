"""Images that come into a folder while it is watched."""
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from common.data.folders import list_images, stamp
from common.runtime.errors import UserError

SETTLED = 2.      # seconds without a change after which a file counts as whole
HOPELESS = 60.    # the same for a file that could not be read: it may be a copy that was held up

Stamp = tuple[int, int]  # size in bytes, modification time in ns: where it differs, the image does too


class Arrivals:
    """The images of a folder that are new, or changed, since they were last asked for, each once it is whole.

    `done` are those that need not be classified again, {path: stamp}. `clock` gives seconds; those of the files may
    come from another machine.
    """

    def __init__(self, folder: str | Path, done: Mapping[str, Stamp], clock: Callable[[], float] = time.monotonic):
        self.folder = folder
        self.done = dict(done)
        self.clock = clock
        self.since: dict[str, tuple[Stamp, float]] = {}  # path: its stamp, and when that was first seen
        self.unreadable: dict[str, Stamp] = {}           # path: its stamp when it could not be read
        self.problem = ''                                # why the folder cannot be read, as it was last told

    def listed(self) -> list[str]:
        """Return the paths of all images; none, with a warning, while the folder cannot be read."""
        try:
            paths = list(list_images(self.folder))
        except UserError as error:
            if str(error) != self.problem:
                print(f'warning: {error}; waiting for it')
            self.problem = str(error)
            return []
        self.problem = ''
        return paths

    def ready(self) -> list[str]:
        """Return the paths of whole images, in order. `take` is to be told of each when it has been read."""
        now = self.clock()
        waiting = {}
        for path in self.listed():
            found = tuple(stamp(path))
            if self.done.get(path) == found:
                continue
            waiting[path] = (found, now)
            if path in self.since and self.since[path][0] == found:
                waiting[path] = self.since[path]
        self.since = waiting
        self.unreadable = {path: found for path, found in self.unreadable.items() if path in waiting}
        paths = []
        for path, (found, since) in waiting.items():
            patience = HOPELESS if self.unreadable.get(path) == found else SETTLED
            if now - since >= patience:
                paths.append(path)
        return paths

    def take(self, path: str, readable: bool) -> Stamp | None:
        """Return the stamp of an image that was ready and is done with, or None if it will be ready once more."""
        known, _ = self.since[path]
        if tuple(stamp(path)) != known:  # it changed while it was read
            return None
        if not readable and self.unreadable.get(path) != known:
            self.unreadable[path] = known
            return None
        del self.since[path]
        self.done[path] = known
        return known
