"""Copies of images in a folder for each answer."""
import filecmp
import itertools
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from common.data.folders import SHARDS_TABLE, refuse_class_names
from common.data.reading import STANDARD_INPUT
from common.evaluation.predictor import UNKNOWN, Prediction
from common.runtime.errors import UserError
from common.runtime.files import beside, locked, writable_folder, writing
from common.runtime.names import inside

UNSURE = 'unsure'


class Sorter:
    """Copies images into folder/CLASS, folder/unsure (confidence below `unsure_below`) or folder/unknown.

    `test_dir` is TEST_DIR. Used with `with`, while no other process sorts into the folder. Raises UserError where the
    folder, the images or a class are unfit.
    """

    def __init__(self, folder: str, test_dir: str, classes: Iterable[str], unsure_below: float, unknown_below: float):
        if Path(test_dir, SHARDS_TABLE).is_file():
            raise UserError('SORT_TO needs files, and the images of TEST_DIR lie in shards: set it to None')
        self.folder = writable_folder(folder, 'SORT_TO')
        if self.folder.resolve().is_relative_to(Path(test_dir).resolve()):
            raise UserError(f'SORT_TO = {folder!r} lies in TEST_DIR: choose a folder outside')
        refuse_class_names(classes, 'SORT_TO')
        for name, below in ((UNSURE, unsure_below), (UNKNOWN, unknown_below)):
            if below and name in classes:
                raise UserError(f'SORT_TO: there is a class {name}: set {name.upper()}_BELOW to 0')
        self.from_list = test_dir == STANDARD_INPUT
        self.unsure_below = unsure_below
        self.lock = locked(beside(self.folder.resolve(), 'lock'), f'SORT_TO = {folder!r}: another run sorts into it')

    def __enter__(self) -> 'Sorter':
        self.lock.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self.lock.__exit__(*error)

    def place(self, prediction: Prediction, name: str) -> Path:
        """Return where the image that tables call `name` belongs: a path below TEST_DIR, or of a list any path.

        Raises BadName.
        """
        answer = prediction.label
        if answer != UNKNOWN and prediction.confidence < self.unsure_below:
            answer = UNSURE
        below = Path(name).name if self.from_list else name
        return Path(inside(self.folder, f'{answer}/{below}'))

    def copy(self, prediction: Prediction, name: str) -> None:
        """Copy a readable image, its times too. Raises UserError where that cannot be written."""
        if not os.path.exists(prediction.image):
            print(f'warning: {prediction.image} is gone, so it is not sorted')
            return
        target = self.place(prediction, name)
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            add_copy(prediction.image, target, self.folder / '.copying')


def add_copy(source: str | Path, target: Path, aside: Path) -> Path:
    """Copy a file so that the copy is whole or not there, and replaces nothing: where `target` is another file, the
    copy gets a number. A file with the same content is taken for the copy.

    The copy is written to `aside`, on the same disk. Returns the path of the copy. Raises OSError.
    """
    try:
        shutil.copy2(source, aside)
        for number in itertools.count(1):
            place = target if number == 1 else target.with_name(f'{target.stem} ({number}){target.suffix}')
            try:
                claim(aside, place)
                return place
            except FileExistsError:
                filecmp.clear_cache()  # which knows files by their size and time alone
                if filecmp.cmp(aside, place, shallow=False):
                    return place
    finally:
        aside.unlink(missing_ok=True)


def claim(aside: Path, target: Path) -> None:
    """Give a file a name that no file has. Raises FileExistsError, OSError."""
    try:
        os.link(aside, target)  # unlike a move it replaces nothing
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        open(target, 'xb').close()
        os.replace(aside, target)
