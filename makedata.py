"""Step 2: split a folder of pictures, one sub-folder for each class, into data/train and data/val.

    python makedata.py

copies the pictures below data1/ (the source is never changed) and writes data/split.json: the settings, and for every
file its source, class, side and SHA-256. Byte-identical files land on the same side. Run again after pictures were
added, it leaves those that were there before on their side.
"""
import hashlib
import json
import os
import shutil
from collections import Counter, defaultdict
from pathlib import Path

from PIL import Image
from sklearn.model_selection import train_test_split
from tqdm.contrib.concurrent import thread_map

from common import settings
from common.files import write_json
from common.images import THREADS, BadImage, class_folders, is_image, list_images, open_image
from common.progress import Bar
from common.settings import UserError

SOURCE_DIR = 'data1'          # a folder with one sub-folder of pictures for each class
TARGET_DIR = 'data'           # is replaced as a whole, but only if this script made it
VAL_RATIO = 0.3               # share of each class that goes to val
SEED = 42                     # another number gives another split
MAX_SIDE: int | None = None   # pixels; larger pictures are shrunk to this while copying: 256 makes training at 224 much
                              # faster on photographs of several megapixels

_MANIFEST = 'split.json'  # (names with a leading underscore are no settings)
_MADE_BY = 'makedata.py'
_LITTER = {'.DS_Store', 'Thumbs.db', 'desktop.ini'}  # what file managers leave in every folder that they show
_SAVE_OPTIONS = {  # of shrunken copies; other formats become PNG
    '.jpg': {'quality': 95}, '.jpeg': {'quality': 95}, '.png': {}, '.webp': {'quality': 95}}


def main(cfg):
    check(cfg)
    earlier = read_manifest(cfg)
    entries = find_entries(cfg)
    report_duplicates(entries)
    sides = choose_sides(entries, cfg, earlier)
    for entry in entries:
        entry['side'] = sides[entry['sha256']]
    entries = build(entries, cfg)
    print_table(entries, cfg)


def check(cfg):
    if not 0 < cfg.VAL_RATIO < 1:
        raise UserError(f'VAL_RATIO = {cfg.VAL_RATIO} must lie between 0 and 1')
    if not 0 <= cfg.SEED < 2 ** 32:
        raise UserError(f'SEED = {cfg.SEED} must lie between 0 and {2 ** 32 - 1}')
    if cfg.MAX_SIDE is not None and cfg.MAX_SIDE < 16:
        raise UserError(f'MAX_SIDE = {cfg.MAX_SIDE} is too small for a picture: give 16 pixels or more, or None')
    source, target = Path(cfg.SOURCE_DIR).resolve(), Path(cfg.TARGET_DIR).resolve()
    if source == target or source in target.parents or target in source.parents:
        raise UserError(f'SOURCE_DIR = {cfg.SOURCE_DIR!r} and TARGET_DIR = {cfg.TARGET_DIR!r} must lie apart')


def read_manifest(cfg):
    """{sha256: side} of the split that is there, {} when there is none.

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
        same = all(manifest['settings'][name] == getattr(cfg, name) for name in ('VAL_RATIO', 'SEED'))
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise UserError(f'{target} exists and was not made by {_MADE_BY}: {advice}')
    known = files.keys() | {_MANIFEST}
    for path in target.rglob('*'):
        if not path.is_dir() and path.relative_to(target).as_posix() not in known and path.name not in _LITTER:
            raise UserError(f'{path} was not put there by {_MADE_BY} and would be lost: {advice}')
    return {entry['sha256']: entry['side'] for entry in files.values()} if same else {}


def find_entries(cfg):
    """[{source, class, file name below its class, sha256}] of all pictures, unreadable ones left out by name."""
    source = Path(cfg.SOURCE_DIR)
    found = [(name, path) for name in class_folders(source) for path in list_images(source / name)]
    others = Counter(path.suffix.lower() for name in class_folders(source) for path in (source / name).rglob('*')
                     if path.suffix and path.is_file() and not is_image(path))
    if others:
        print('left out, no pictures to Pillow: ' + ', '.join(f'{n} {kind}' for kind, n in others.most_common()))
    if not found:
        raise UserError(f'{source}: no pictures in its sub-folders')
    hashes = thread_map(hash_picture, [path for _, path in found], max_workers=THREADS, tqdm_class=Bar,
                        desc='reading', unit='img')
    entries = []
    for (name, path), (digest, problem) in zip(found, hashes, strict=True):
        if problem:
            print(f'left out: {problem}')
        else:
            entries.append({'source': path.as_posix(), 'class': name, 'sha256': digest,
                            'name': path.relative_to(source / name).as_posix()})
    empty = set(class_folders(source)) - {entry['class'] for entry in entries}
    if empty:
        raise UserError(f'{source}: no pictures in {", ".join(sorted(empty))}: add some or remove the folder')
    return entries


def hash_picture(path):
    """(SHA-256 of a file, None), or (None, what is wrong) when its header is not that of a picture."""
    try:
        with Image.open(path):
            pass
        return hashlib.sha256(Path(path).read_bytes()).hexdigest(), None
    except Exception as error:  # Pillow's errors on a damaged file are of a dozen types
        return None, f'{path}: not a readable image ({error})'


def report_duplicates(entries):
    classes = defaultdict(set)
    for entry in entries:
        classes[entry['sha256']].add(entry['class'])
    if len(classes) < len(entries):
        print(f'{len(entries) - len(classes)} files are byte-identical to another; each such group stays on one side')
    for digest, names in classes.items():
        if len(names) > 1:
            files = ', '.join(entry['source'] for entry in entries if entry['sha256'] == digest)
            print(f'warning: the same picture in {len(names)} classes, so at least one label is wrong: {files}')


def choose_sides(entries, cfg, earlier):
    """{sha256: 'train' or 'val'}: VAL_RATIO of each class's distinct pictures to val, but at least one to each side.

    Pictures of an earlier split keep their side; only new ones are drawn.
    """
    sides, groups = {}, defaultdict(dict)
    for entry in entries:
        if entry['sha256'] not in sides:  # a picture in two classes counts in the first
            sides[entry['sha256']] = earlier.get(entry['sha256'])
            groups[entry['class']][entry['sha256']] = None
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


def _aside(target, what):
    return target.with_name(f'.{target.name}.makedata-{what}')


def build(entries, cfg):
    """Copy everything into a folder beside TARGET_DIR, then put it in TARGET_DIR's place. Returns what was copied."""
    target = Path(cfg.TARGET_DIR)
    aside, old = _aside(target, 'new'), _aside(target, 'old')
    for folder in (aside, old):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        for side in ('train', 'val'):
            for name in {entry['class'] for entry in entries}:
                (aside / side / name).mkdir(parents=True)
        problems = thread_map(lambda entry: place(entry, aside, cfg.MAX_SIDE), entries, max_workers=THREADS,
                              tqdm_class=Bar, desc='copying', unit='img')
        for problem in filter(None, problems):
            print(f'left out: {problem}')
        entries = [entry for entry, problem in zip(entries, problems, strict=True) if not problem]
        write_json(aside / _MANIFEST, {'made_by': _MADE_BY, 'settings': vars(cfg), 'files': [
            {key: entry[key] for key in ('file', 'source', 'class', 'side', 'sha256')} for entry in entries]})
        if target.exists():
            target.rename(old)
        aside.rename(target)
    except (OSError, UserError) as error:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(f'{target} cannot be written ({error}): close programs that have files of it open, free some '
                        'space, or choose another TARGET_DIR') from error
    shutil.rmtree(old, ignore_errors=True)
    return entries


def place(entry, folder, max_side):
    """Copy one picture into its class's folder, shrunk if it is larger than max_side, and note where it is.

    Returns what is wrong with it if it had to be shrunk and cannot be read.
    """
    file = Path(entry['side'], entry['class'], entry['name'])
    try:
        small = max_side and shrink(entry['source'], max_side)
    except BadImage as error:
        return str(error)
    if small and file.suffix.lower() not in _SAVE_OPTIONS:
        file = file.with_name(f'{file.name}.shrunk.png')
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    if small:
        small.save(folder / file, **_SAVE_OPTIONS[file.suffix.lower()])
    else:
        shutil.copyfile(entry['source'], folder / file)  # without its permissions: the copy must be replaceable
    entry['file'] = file.as_posix()
    return None


def shrink(path, max_side):
    """The picture with its longer side at max_side pixels, or None if it is not larger than that."""
    with Image.open(path) as image:
        if max(image.size) <= max_side:
            return None
    image = open_image(path)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return image


def print_table(entries, cfg):
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
