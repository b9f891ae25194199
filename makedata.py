"""Step 2: split a folder of images, one sub-folder for each class, into data/train and data/val.

    python makedata.py
    python makedata.py --folds 5      data/fold1/train, data/fold1/val and so on, for cross-validation

Copies the images below data1/ (the source is never changed) and writes data/split.csv: for every file its source,
class, side, group and SHA-256. The settings are in data/split.json. Images that belong together land on the same side:
byte-identical files, images that differ only in size, quality, a small crop or a turn, and what GROUP says. After
images were added, run it again: those that were there before stay on their side, also those that were missing once.
"""
import re
import shutil
from pathlib import Path
from typing import Any

from common import settings
from common.data.folders import FoundImages, Rows, find_in_class_folders, read_stamps
from common.data.listing import print_left_out
from common.data.split import (
    CORRECTED_TABLE,
    FileLayout,
    Layout,
    advise_group,
    keep_absent,
    read_sides,
    report_duplicates,
    warn_of_similar_names,
    writing_manifest,
)
from common.data.taking import take_images
from common.runtime.errors import UserError, extra
from common.runtime.files import beside, locked, replacing_folder, restore, writable_folder

SOURCE_DIR: str = 'data1'     # Folder with one sub-folder of images for each class.
LABELS: str | None = None     # CSV file that gives the classes if the images do not lie in a sub-folder for each. Its
                              # columns are file (the path below SOURCE_DIR), class and, if you like, group.
CORRECTIONS: str | None = 'corrections.csv'  # Corrected labels and images to leave out, as report.html writes them;
                              # used if it is there. Of several, 'a.csv,b.csv', the later decision on an image counts.
TARGET_DIR: str = 'data'      # Folder for the split. It is replaced as a whole, but only if makedata.py made it.
VAL_RATIO: float = 0.3        # Fraction of each class that goes to data/val.
TEST_RATIO: float = 0.0       # Fraction of each class that goes to data/test, which train.py never reads.
FOLDS: int | None = None      # Number of splits for cross-validation, in which every image is in val once; VAL_RATIO
                              # does not count then. None makes a single split.
SEED: int = 42                # Seed of the random draw. Another number gives another split.
NEAR_DUPLICATES: bool | str = 'auto'  # Keep images on one side that are the same but for quality, size, a crop of up to
                              # 5 %, quarter turns or mirroring. 'auto' does so for up to 20,000 images.
GROUP: str | None = None      # What else keeps images on one side, such as photographs of one plant, burst or video:
                              # 'folder' (each folder below a class), or a regular expression, which joins the images
                              # in whose paths below SOURCE_DIR it finds the same text.
MAX_SIDE: int | None = None   # Longest side in pixels. Larger images are shrunk to it while they are copied: they take
                              # less room, and each training starts sooner.
LINK: bool = False            # True makes hard links instead of copies. They take no room, but are the source's own
                              # files: editing an image in data/ edits it there, too.
SHARDS: bool = False          # True writes data/train and data/val as large files of many images each, for network
                              # disks and millions of images. train.py reads them as it reads folders.

_MOST_COMPARED = 20_000  # images that NEAR_DUPLICATES = 'auto' compares with each other, in minutes
_WAITING = '_taken'      # where images wait in the new folder until the side of each is known
_USUAL_CORRECTIONS = 'corrections.csv'  # may be missing; any other table that is named must be there


def main(cfg: settings.Settings) -> None:
    check(cfg)
    layout = choose_layout(cfg)
    writable_folder(Path(cfg.TARGET_DIR).parent, 'TARGET_DIR')
    with locked(beside(Path(cfg.TARGET_DIR), 'lock'), f'TARGET_DIR = {cfg.TARGET_DIR!r}: another makedata.py runs'):
        split(layout, cfg)


def split(layout: Layout, cfg: settings.Settings) -> None:
    """Build the new split beside TARGET_DIR, put it in its place, and print what is in it."""
    target = Path(cfg.TARGET_DIR)
    earlier = Rows([])
    exists = restore(target)  # a run that was killed while it replaced the split may have moved it away
    if exists:
        earlier = read_sides(target, vars(cfg))

    found = find_images(cfg)
    corrections = find_corrections(cfg, found)
    stamps = read_stamps(found.samples)
    print_left_out(found.left_out)
    warn_of_similar_names(found.classes)

    compare = cfg.NEAR_DUPLICATES
    if compare == 'auto':
        compare = len(found.samples) <= _MOST_COMPARED
        if not compare:
            print(f'near-duplicates are not looked for among {len(found.samples)} images, which takes long: set '
                  'NEAR_DUPLICATES = True to do so, and GROUP if names tell which images belong together')

    with replacing_folder(target) as folder:
        taken = take_images(found, folder / _WAITING, link=cfg.LINK or layout.links_suffice, max_side=cfg.MAX_SIDE,
                            compare=compare, group=cfg.GROUP)
        if cfg.LINK and taken.copies:
            print(f'LINK: no hard links to {cfg.SOURCE_DIR} can be made in {cfg.TARGET_DIR}, so these are copies')
        images = taken
        sides = layout.divide(taken, earlier)  # by the classes of the source: a corrected image stays on its side
        left_out = []
        if corrections is not None:
            corrected = corrections.apply(taken, sides, remember=not cfg.FOLDS)
            images = corrected.images
            sides = corrected.sides
            left_out = corrected.left_out
            corrections.write(folder / CORRECTED_TABLE)
        report_duplicates(images)
        if not cfg.GROUP and not any(found.groups or []):
            advise_group(taken)
        with writing_manifest(folder, vars(cfg)) as rows:
            layout.write(images, sides, folder, rows)
            rows.writerows(left_out)
        if not cfg.FOLDS:
            keep_absent(folder, taken, target, earlier)
        shutil.rmtree(folder / _WAITING)
        changed = find_images(cfg).samples != found.samples  # a second look
        if changed or (read_stamps(found.samples) != stamps).any():
            raise UserError(f'{cfg.SOURCE_DIR} changed while it was read: run makedata.py again when it is complete')
    layout.report(images, sides, cfg.TARGET_DIR)


def find_images(cfg: settings.Settings) -> FoundImages:
    """Return the images of SOURCE_DIR with their classes, those of its sub-folders or of a table."""
    if cfg.LABELS:
        with extra('LABELS'):
            from extras.labels import read_labels
        return read_labels(cfg.LABELS, cfg.SOURCE_DIR)
    return find_in_class_folders(cfg.SOURCE_DIR)


def find_corrections(cfg: settings.Settings, found: FoundImages) -> Any:
    """Return the extra's Corrections of the images that were found, or None. Raises UserError, naming the line."""
    if not cfg.CORRECTIONS or (cfg.CORRECTIONS == _USUAL_CORRECTIONS and not Path(cfg.CORRECTIONS).exists()):
        return None
    with extra('CORRECTIONS'):
        from extras.review.corrections import read_corrections
    one_file = Path(cfg.CORRECTIONS).exists()  # whose name may have a comma
    tables = [name.strip() for name in cfg.CORRECTIONS.split(',')]
    return read_corrections([cfg.CORRECTIONS] if one_file else tables, found)


def choose_layout(cfg: settings.Settings) -> Layout:
    """Return what decides where each image goes and puts it there: one split of files, folds, or shards."""
    if cfg.FOLDS is not None:
        with extra('FOLDS'):
            from extras.folds import FoldLayout
        return FoldLayout(cfg.FOLDS, cfg.SEED, cfg.TEST_RATIO, cfg.SHARDS)
    if cfg.SHARDS:
        with extra('SHARDS'):
            from extras.shards.writing import ShardLayout
        return ShardLayout(cfg.VAL_RATIO, cfg.TEST_RATIO, cfg.SEED)
    return FileLayout(cfg.VAL_RATIO, cfg.TEST_RATIO, cfg.SEED)


def check(cfg: settings.Settings) -> None:
    """Raise UserError for settings with which there can be no split."""
    if not 0 < cfg.VAL_RATIO < 1:
        raise UserError(f'VAL_RATIO = {cfg.VAL_RATIO} must lie between 0 and 1')
    if not 0 <= cfg.TEST_RATIO < 1 - cfg.VAL_RATIO:
        raise UserError(f'TEST_RATIO = {cfg.TEST_RATIO} must be at least 0, and below 1 together with VAL_RATIO = '
                        f'{cfg.VAL_RATIO}')
    if not 0 <= cfg.SEED < 2 ** 32:
        raise UserError(f'SEED = {cfg.SEED} must lie between 0 and {2 ** 32 - 1}')
    if cfg.NEAR_DUPLICATES not in (True, False, 'auto'):
        raise UserError(f"NEAR_DUPLICATES = {cfg.NEAR_DUPLICATES!r}: choose True, False or 'auto'")
    try:
        re.compile(cfg.GROUP or '')
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"GROUP = {cfg.GROUP!r} must be None, 'folder' or a regular expression ({error})") from None
    if cfg.MAX_SIDE is not None and cfg.MAX_SIDE < 16:
        raise UserError(f'MAX_SIDE = {cfg.MAX_SIDE} is too small for an image: give 16 pixels or more, or None')
    if Path(cfg.TARGET_DIR).name in ('', '..'):
        raise UserError(f'TARGET_DIR = {cfg.TARGET_DIR!r} is replaced as a whole: give it a name of its own')
    source = Path(cfg.SOURCE_DIR).resolve()
    target = Path(cfg.TARGET_DIR).resolve()
    if source == target or source in target.parents or target in source.parents:
        raise UserError(f'SOURCE_DIR = {cfg.SOURCE_DIR!r} and TARGET_DIR = {cfg.TARGET_DIR!r} must lie apart: '
                        'choose a TARGET_DIR elsewhere')


if __name__ == '__main__':
    settings.run(main)
