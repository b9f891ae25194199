"""Copies of images in a folder for each answer."""
import filecmp
import itertools
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from common.data.folders import holds_shards, refuse_class_names
from common.data.sources import STANDARD_INPUT
from common.evaluation.predictor import Prediction, free_label
from common.runtime.errors import UserError
from common.runtime.files import beside, locked, make_folder, scratch_folder, sync, sync_below, writable_folder, writing
from common.runtime.names import inside

UNSURE = 'unsure'
_COPIED_AT_A_TIME = 2 ** 20  # bytes


class Sorter:
    """Copies images into folder/CLASS, folder/unsure (confidence below `unsure_below`) or folder/unknown, whose names
    are longer where a class is called so.

    `test_dir` is TEST_DIR. Used with `with`, while no other process sorts into the folder. Raises UserError where the
    folder, the images or a class are unfit.
    """

    def __init__(self, folder: str, test_dir: str, classes: Sequence[str], unsure_below: float):
        if holds_shards(test_dir):
            raise UserError('SORT_TO needs files, and the images of TEST_DIR lie in shards: set it to None')
        self.folder = writable_folder(folder, 'SORT_TO')
        if self.folder.resolve().is_relative_to(Path(test_dir).resolve()):
            raise UserError(f'SORT_TO = {folder!r} lies in TEST_DIR: choose a folder outside')
        refuse_class_names(classes, 'SORT_TO')
        self.unsure = free_label(UNSURE, classes)
        self.from_list = test_dir == STANDARD_INPUT
        self.unsure_below = unsure_below
        self.lock = locked(beside(self.folder.resolve(), 'lock'), f'SORT_TO = {folder!r}: another run sorts into it')

        self.waiting: list[tuple[Path, Path]] = []  # copies that are not at their places yet, and these places

    def __enter__(self) -> 'Sorter':
        with ExitStack() as opening:  # should it fail half-way, what was opened is closed
            opening.enter_context(self.lock)
            self.scratch = opening.enter_context(scratch_folder(self.folder / '.copying'))
            self.opened = opening.pop_all()
        return self

    def __exit__(self, kind, *error) -> None:
        with self.opened:
            if kind is None:
                self.finish()

    def place(self, prediction: Prediction, name: str) -> Path:
        """Return where the image that tables call `name` belongs: a path below TEST_DIR, or of a list any path.

        Raises BadName.
        """
        answer = prediction.label
        if not prediction.is_unknown and prediction.confidence < self.unsure_below:
            answer = self.unsure
        below = Path(name).name if self.from_list else name
        return Path(inside(self.folder, f'{answer}/{below}'))

    def copy(self, prediction: Prediction, name: str) -> None:
        """Copy a readable image, its times too, which finish() brings to its place. Raises UserError where the copy
        cannot be written.
        """
        target = self.place(prediction, name)
        aside = self.scratch / str(len(self.waiting))
        with writing(target):
            if copy_aside(prediction.image, aside):
                self.waiting.append((aside, target))

    def finish(self) -> None:
        """Bring the copies to their places as soon as the disk has them. After that the tables may name the images.

        Raises UserError.
        """
        if not self.waiting:
            return
        with writing(self.folder):
            sync_below(self.scratch)
        folders = set()
        for aside, target in self.waiting:
            with writing(target):
                make_folder(target.parent)
                put_copy(aside, target)
                aside.unlink(missing_ok=True)
            folders.add(target.parent)
        self.waiting = []
        for folder in folders:
            with writing(folder):
                sync(folder)


def copy_aside(source: str | Path, aside: Path) -> bool:
    """Copy a file to `aside`, where nothing may be yet. Returns False, after a warning, for one that went away.

    Raises OSError.
    """
    if not os.path.exists(source):
        print(f'warning: {source} is gone, so it is not sorted')
        return False
    with open(source, 'rb') as old, open(aside, 'xb') as new:
        shutil.copyfileobj(old, new, _COPIED_AT_A_TIME)
    shutil.copystat(source, aside)
    return True


def put_copy(aside: Path, target: Path) -> Path:
    """Give a copy, on the same disk, the name `target`. It replaces nothing: where `target` is another file, the copy
    gets a number. A file with the same content is taken for the copy.

    Returns the path of the copy. Raises OSError.
    """
    place = target
    for number in itertools.count(2):
        try:
            claim(aside, place)
            break
        except FileExistsError:
            filecmp.clear_cache()  # which knows files by their size and time alone
            if filecmp.cmp(aside, place, shallow=False):
                break
        place = target.with_name(f'{target.stem} ({number}){target.suffix}')
    return place


def claim(aside: Path, target: Path) -> None:
    """Give a file a name that no file has. Raises FileExistsError, OSError."""
    try:
        os.link(aside, target)  # unlike a move it replaces nothing
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links; no other process sorts into the folder
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        os.rename(aside, target)
