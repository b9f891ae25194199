"""Step 2: split a folder of pictures, one sub-folder for each class, into data/train and data/val.

    python makedata.py

copies the pictures below data1/ (the source is never changed) and writes data/split.json: the settings, and for every
file its source, class, side and SHA-256. Byte-identical files land on the same side. Run again after pictures were
added, it leaves those that were there before on their side.
"""
import hashlib
import io
import itertools
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from common import settings
from common.data.folders import find_files, find_pictures, is_image, pictures_of, refuse_empty, stamp
from common.data.images import bad_image, decode, header, regular
from common.runtime.console import printable
from common.runtime.errors import UserError
from common.runtime.files import locked, writable_folder, write_json
from common.runtime.threads import map_in_threads

SOURCE_DIR = 'data1'          # a folder with one sub-folder of pictures for each class
TARGET_DIR = 'data'           # is replaced as a whole, but only if this script made it
VAL_RATIO = 0.3               # share of each class that goes to val
SEED = 42                     # another number gives another split
MAX_SIDE: int | None = None   # pixels; larger pictures are shrunk to this while copying: they take less room, and are
                              # read sooner at the start of each training
LINK = False                  # True: hard links instead of copies. They take no room, but are the source's own files:
                              # whoever edits a picture in data/ edits it there too

_TAKEN = 'taken'  # where pictures wait in the new folder until all are known
_MANIFEST = 'split.json'  # (names with a leading underscore are no settings)
_MADE_BY = 'makedata.py'
_LITTER = {'.DS_Store', 'Thumbs.db', 'desktop.ini'}  # what file managers leave in every folder that they show
_SAVE_OPTIONS = {  # of shrunken copies; other formats become PNG
    '.jpg': {'quality': 95}, '.jpeg': {'quality': 95}, '.png': {}, '.webp': {'quality': 95}}


def main(cfg: settings.Settings) -> None:
    check(cfg)
    with locked(_aside(Path(cfg.TARGET_DIR), 'lock'), f'TARGET_DIR = {cfg.TARGET_DIR!r}: another makedata.py is there'):
        split(cfg)


def split(cfg: settings.Settings) -> None:
    """Build the new split beside TARGET_DIR, put it in its place, and print what there is to know of the pictures."""
    earlier = read_manifest(cfg)
    files = find_files(cfg.SOURCE_DIR)
    found = pictures_of(files, cfg.SOURCE_DIR)
    stamps = [stamp(path) for _, path in found]
    report_others([path for _, path in files])
    report_likeness({name for name, _ in found})
    with staging(Path(cfg.TARGET_DIR)) as folder:
        entries = read_entries(found, folder, cfg)
        report_duplicates(entries)
        sides = choose_sides(entries, cfg, earlier)
        for entry in entries:
            arrange(entry, sides[entry['sha256']], folder)
        for name in {entry['class'] for entry in entries}:
            for side in ('train', 'val'):
                (folder / side / name).mkdir(parents=True, exist_ok=True)
        (folder / _TAKEN).rmdir()
        if find_pictures(cfg.SOURCE_DIR) != found or [stamp(path) for _, path in found] != stamps:
            raise UserError(f'{cfg.SOURCE_DIR} changed while it was read: run makedata.py again when it is complete')
        write_json(folder / _MANIFEST, {'made_by': _MADE_BY, 'settings': vars(cfg), 'files': [
            {key: entry[key] for key in ('file', 'source', 'class', 'side', 'sha256')} for entry in entries]})
    print_table(entries, cfg)


def check(cfg: settings.Settings) -> None:
    """Raise UserError for settings with which there can be no split."""
    if not 0 < cfg.VAL_RATIO < 1:
        raise UserError(f'VAL_RATIO = {cfg.VAL_RATIO} must lie between 0 and 1')
    if not 0 <= cfg.SEED < 2 ** 32:
        raise UserError(f'SEED = {cfg.SEED} must lie between 0 and {2 ** 32 - 1}')
    if cfg.MAX_SIDE is not None and cfg.MAX_SIDE < 16:
        raise UserError(f'MAX_SIDE = {cfg.MAX_SIDE} is too small for a picture: give 16 pixels or more, or None')
    if Path(cfg.TARGET_DIR).name in ('', '..'):
        raise UserError(f'TARGET_DIR = {cfg.TARGET_DIR!r} is replaced as a whole: give it a name of its own')
    source, target = Path(cfg.SOURCE_DIR).resolve(), Path(cfg.TARGET_DIR).resolve()
    if source == target or source in target.parents or target in source.parents:
        raise UserError(f'SOURCE_DIR = {cfg.SOURCE_DIR!r} and TARGET_DIR = {cfg.TARGET_DIR!r} must lie apart')
    writable_folder(Path(cfg.TARGET_DIR).parent, 'TARGET_DIR')


def read_manifest(cfg: settings.Settings) -> dict[str, str]:
    """{sha256: side} of the split that is there; {} when there is none, or it has another VAL_RATIO or SEED.

    Raises UserError if TARGET_DIR is anything but a split of this script's, or holds a file that it did not put there.
    """
    target = Path(cfg.TARGET_DIR)
    if not os.path.lexists(target):
        if not _aside(target, 'old').exists():
            return {}
        _aside(target, 'old').rename(target)  # a run was killed just before it put the new split in place
    advice = 'move it away or choose another TARGET_DIR; it was not touched'
    try:
        manifest = json.loads((target / _MANIFEST).read_text(encoding='utf-8'))
        files = {entry['file']: entry for entry in manifest['files']}
        ours = manifest['made_by'] == _MADE_BY and not target.is_symlink()
        sides = {entry['sha256']: entry['side'] for entry in files.values()}
        ours = ours and all(isinstance(digest, str) for digest in sides) and {*sides.values()} <= {'train', 'val'}
        same = all(manifest['settings'][name] == getattr(cfg, name) for name in ('VAL_RATIO', 'SEED'))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        ours = False
    if not ours:
        raise UserError(f'{target} exists and was not made by {_MADE_BY}: {advice}')
    known = files.keys() | {_MANIFEST}
    for place, folders, names in os.walk(target):
        links = [name for name in folders if Path(place, name).is_symlink()]
        for path in (Path(place, name) for name in names + links):
            if path.relative_to(target).as_posix() not in known and path.name not in _LITTER:
                raise UserError(f'{path} was not put there by {_MADE_BY} and would be lost: {advice}')
    return sides if same else {}


def report_others(paths: list[str]) -> None:
    """Print how many files of which endings are left out for their names."""
    others = Counter(path.suffix.lower() for path in map(Path, itertools.filterfalse(is_image, paths))
                     if path.suffix and path.name not in _LITTER)
    if others:
        print('left out, no pictures to Pillow: '
              + ', '.join(f'{n} {printable(kind)}' for kind, n in others.most_common()))
    if others.keys() & {'.heic', '.heif'}:
        print('to read them too: python -m pip install pillow-heif')


def report_likeness(names: Iterable[str]) -> None:
    """Warn of classes whose names differ in nothing but letter case."""
    groups = defaultdict(list)
    for name in sorted(names):
        groups[name.casefold()].append(name)
    for alike in groups.values():
        if len(alike) > 1:
            print(f'warning: {" and ".join(alike)} are different classes here, but one on Windows and macOS')


def _aside(target, purpose):
    return target.with_name(f'.{target.name}.makedata-{purpose}')


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Yields an empty folder beside `target` to build in; at the end it takes target's place, or goes on an error.

    Raises UserError where it cannot be written.
    """
    aside, old = _aside(target, 'new'), _aside(target, 'old')
    for folder in (aside, old):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        (aside / _TAKEN).mkdir(parents=True)
        yield aside
        if target.exists():
            target.rename(old)
        aside.rename(target)
    except OSError as error:
        if old.exists() and not target.exists():
            old.rename(target)
        raise UserError(f'{target} cannot be written ({error.strerror or error}): close programs that have files of it '
                        'open, free some space, or choose another TARGET_DIR') from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def read_entries(found: list[tuple[str, str]], folder: Path, cfg: settings.Settings) -> list[dict]:
    """[{source, class, sha256, name: path below the class, taken: the file in folder}], without unreadable pictures.

    Raises UserError where a class has no readable ones.
    """
    def take_one(number, path):
        return take(path, folder / _TAKEN / str(number), cfg)

    paths = [Path(path) for _, path in found]
    results = map_in_threads(take_one, range(len(paths)), paths, desc='copying' if not cfg.LINK else 'reading')
    entries = []
    for (name, _), path, (taken, digest, problem) in zip(found, paths, results, strict=True):
        if problem:
            print(f'left out: {problem}')
            continue
        below = path.relative_to(Path(cfg.SOURCE_DIR, name)).as_posix()
        if taken.suffix and taken.suffix != path.suffix.lower():
            below += '.shrunk.png'
            if len(os.fsencode(Path(below).name)) > 255:  # the most that file systems take
                below = Path(below).with_name(f'{digest}.png').as_posix()
        entries.append({'source': path.as_posix(), 'class': name, 'sha256': digest, 'name': below, 'taken': taken})
    refuse_empty(cfg.SOURCE_DIR, {entry['class'] for entry in entries})
    if cfg.LINK and any(not entry['taken'].samefile(entry['source']) for entry in entries if not entry['taken'].suffix):
        print(f'LINK: {cfg.TARGET_DIR} lies where no hard links to {cfg.SOURCE_DIR} can be made, so these are copies')
    return entries


def take(path: Path, file: Path, cfg: settings.Settings) -> tuple[Path, str, None] | tuple[None, None, str]:
    """Read a picture once, for its SHA-256 and its copy, link or, with a suffix added, shrunken version at `file`.

    Returns (the file, SHA-256, None), or (None, None, what is wrong) where it is no readable picture.
    """
    small = None
    try:
        content = regular(path).read_bytes()
        with header(io.BytesIO(content)) as image:
            size = image.size
        if cfg.MAX_SIDE and max(size) > cfg.MAX_SIDE:
            small = decode(io.BytesIO(content), path, at_least=2 * cfg.MAX_SIDE)
    except (MemoryError, UserError):
        raise
    except Exception as error:  # Pillow's errors on a damaged file are of a dozen types
        return None, None, str(bad_image(path, error))
    if small:
        small.thumbnail((cfg.MAX_SIDE, cfg.MAX_SIDE), Image.Resampling.LANCZOS)
        suffix = path.suffix.lower() if path.suffix.lower() in _SAVE_OPTIONS else '.png'
        file = file.with_suffix(suffix)
        small.save(file, **_SAVE_OPTIONS[suffix])
    elif not (cfg.LINK and link(path, file)):
        file.write_bytes(content)
    return file, hashlib.sha256(content).hexdigest(), None


def link(path: Path, file: Path) -> bool:
    """Make `file` a hard link to `path`; False where the file system has none, or it is another one."""
    try:
        os.link(path.resolve(), file)
    except OSError:
        return False
    return True


def report_duplicates(entries: list[dict]) -> None:
    """Print how many pictures there are more than once, and warn of those in several classes."""
    classes = defaultdict(set)
    for entry in entries:
        classes[entry['sha256']].add(entry['class'])
    if len(classes) < len(entries):
        print(f'{len(entries) - len(classes)} files are byte-identical to another; each such group stays on one side')
    for digest, names in classes.items():
        if len(names) > 1:
            files = ', '.join(printable(entry['source']) for entry in entries if entry['sha256'] == digest)
            print(f'warning: the same picture in {len(names)} classes, so at least one label is wrong: {files}')


def choose_sides(entries: list[dict], cfg: settings.Settings, earlier: dict[str, str]) -> dict[str, str]:
    """{sha256: 'train' or 'val'}: VAL_RATIO of each class's distinct pictures to val, but at least one to each side.

    Pictures of an earlier split keep their side; only new ones are drawn.
    """
    sides, groups = {}, defaultdict(dict)
    for entry in entries:
        if entry['sha256'] not in sides:  # a picture in two classes counts in the first
            sides[entry['sha256']] = earlier.get(entry['sha256'])
            groups[entry['class']][entry['sha256']] = None
    from sklearn.model_selection import train_test_split  # here, since it takes a second to import

    for digests in map(sorted, groups.values()):
        if len({sides[digest] for digest in digests}) == 1:  # all on one side: pictures were taken away; draw anew
            sides |= dict.fromkeys(digests)
        new = [digest for digest in digests if sides[digest] is None]
        wanted = min(max(1, round(cfg.VAL_RATIO * len(digests))), len(digests) - 1)
        wanted -= sum(sides[digest] == 'val' for digest in digests)
        if 0 < wanted < len(new):
            train, val = train_test_split(new, test_size=wanted, random_state=cfg.SEED)
        else:
            train, val = (new, []) if wanted <= 0 else ([], new)
        sides |= dict.fromkeys(train, 'train') | dict.fromkeys(val, 'val')
    return sides


def arrange(entry: dict, side: str, folder: Path) -> None:
    """Move what was taken of a picture to its side and class, and enter both in `entry`."""
    file = Path(side, entry['class'], entry['name'])
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        if not (folder / file).exists():
            break
        file = file.with_name(f'{entry["sha256"]}-{number}{file.suffix}')  # a shrunken copy has the name of another
    entry['taken'].rename(folder / file)
    entry |= {'side': side, 'file': file.as_posix()}


def print_table(entries: list[dict], cfg: settings.Settings) -> None:
    """Print the pictures of each class on each side, and warn of classes that are small beside others."""
    counts = Counter((entry['class'], entry['side']) for entry in entries)
    names = sorted({entry['class'] for entry in entries})
    width = max(len('class'), *map(len, names))
    print(f'\n{"class":{width}}  train    val')
    for name in names:
        print(f'{name:{width}} {counts[name, "train"]:6} {counts[name, "val"]:6}')
    print(f'{"all":{width}} {sum(counts[n, "train"] for n in names):6} {sum(counts[n, "val"] for n in names):6}')
    sizes = {name: counts[name, 'train'] + counts[name, 'val'] for name in names}
    most, least = max(sizes, key=sizes.get), min(sizes, key=sizes.get)
    if sizes[most] >= 2 * sizes[least]:
        print(f'\nimbalance: {most} has {sizes[most] / sizes[least]:.1f} times as many pictures as {least}; '
              'look at the balanced accuracy that train.py reports, beside ACC1')
    for name in names:
        if not counts[name, 'val']:
            print(f'warning: {name} is too small to split: it has no picture in val, so nothing will measure it')
    print(f'\n{cfg.TARGET_DIR}/train, {cfg.TARGET_DIR}/val and {cfg.TARGET_DIR}/{_MANIFEST} are written')


if __name__ == '__main__':
    settings.run(main)
