"""Pictures that come into a folder while it is watched."""
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from common.data.folders import list_images, stamp
from common.runtime.errors import UserError

SETTLED = 2.      # seconds without a change after which a file counts as whole
HOPELESS = 60.    # the same for one that could not be read: it may be a copy that was held up

Stamp = tuple[int, int]  # size in bytes, modification time in ns: another one is another picture


class Arrivals:
    """The pictures of a folder that are new since they were last asked for, or changed, each once it is whole.

    `done` are those that need not be named again, {path: stamp}. `clock` gives seconds; those of the files may come
    from another machine.
    """

    def __init__(self, folder: str | Path, done: Mapping[str, Stamp], clock: Callable[[], float] = time.monotonic):
        self.folder, self.done, self.clock = folder, dict(done), clock
        self.since: dict[str, tuple[Stamp, float]] = {}  # path: its stamp, and when it was seen first
        self.unreadable: set[str] = set()
        self.problem = ''

    def listed(self) -> list[str]:
        """All pictures; none, with a warning, while the folder cannot be read."""
        try:
            paths, self.problem = list(list_images(self.folder)), ''
        except UserError as error:
            if str(error) != self.problem:
                print(f'warning: {error}; waiting for it')
            paths, self.problem = [], str(error)
        return paths

    def ready(self) -> list[str]:
        """Paths, in order, each of which `take` is to be told of when it has been read."""
        now, waiting = self.clock(), {}
        for path in self.listed():
            found = tuple(stamp(path))
            if self.done.get(path) != found:
                known = self.since.get(path)
                waiting[path] = known if known and known[0] == found else (found, now)
        self.since, self.unreadable = waiting, self.unreadable & waiting.keys()
        return [path for path, (_, since) in waiting.items()
                if now - since >= (HOPELESS if path in self.unreadable else SETTLED)]

    def take(self, path: str, readable: bool) -> Stamp | None:
        """Whether a picture that was ready is done with: its stamp, or None if it will be ready once more."""
        if tuple(stamp(path)) != self.since[path][0]:  # it changed while it was read
            return None
        if not readable and path not in self.unreadable:
            self.unreadable.add(path)
            return None
        self.done[path] = self.since.pop(path)[0]
        return self.done[path]
