"""How many copies of photographs makedata.py keeps on the side of their originals.

    python tests/bench/near_duplicates.py --photos PHOTOS

Every photograph of PHOTOS, a folder with one sub-folder for each class, gets a copy that was saved again, resized,
cropped, turned or mirrored, each kind equally often; makedata.py splits both. Prints how many of each kind are with
their originals, and what was grouped besides.
"""
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from helpers import COPIES, rows_of

import makedata
from common import settings
from common.data.folders import find_in_class_folders
from common.data.images import open_image

PHOTOS = 'data1'
SEED = 1


def main(cfg):
    with tempfile.TemporaryDirectory() as folder:
        kinds, place = {}, Path(folder)
        images = find_in_class_folders(cfg.PHOTOS)
        found = [(images.classes[target], path) for path, target in images.samples]
        random.Random(cfg.SEED).shuffle(found)
        for number, (name, path) in enumerate(found):
            kind = list(COPIES)[number % len(COPIES)]
            (place / 'both' / name).mkdir(parents=True, exist_ok=True)
            (place / 'both' / name / f'{number}{Path(path).suffix}').write_bytes(Path(path).read_bytes())
            COPIES[kind](open_image(path)).save(place / 'both' / name / f'{number}-copy.png')
            kinds[number] = kind
        start = time.perf_counter()
        makedata.main(settings.read(makedata, [
            '--source-dir', str(place / 'both'), '--target-dir', str(place / 'split'), '--near-duplicates', 'true']))
        seconds, rows = time.perf_counter() - start, rows_of(place / 'split')
    groups, sides = ({Path(row['source']).stem: row[column] for row in rows} for column in ('group', 'side'))
    for title, of in (('in the group', groups), ('on the side', sides)):
        right = Counter(kinds[number] for number in kinds if of[str(number)] == of[f'{number}-copy'])
        print(f'copies {title} of their originals: {sum(right.values())} of {len(kinds)}')
        for kind in COPIES:
            print(f'    {kind:32} {right[kind]:5} of {Counter(kinds.values())[kind]}')
    members = {}
    for stem, group in groups.items():
        members.setdefault(group, set()).add(stem.partition('-')[0])
    print(f'groups with several originals: {[sorted(one) for one in members.values() if len(one) > 1]}')
    print(f'makedata.py took {seconds:.0f} s for {len(rows)} pictures')


if __name__ == '__main__':
    settings.run(main)
