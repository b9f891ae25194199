"""EXPLAIN of test.py: images with what the answer of a VOLO rests on."""
import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from common.data.folders import Store
from common.data.sources import Source, read_batches
from common.data.transforms import Transform, fit
from common.reporting.page import THUMBNAIL_SIDE, Section, as_uri, prediction_lines
from common.runtime.console import Bar
from common.runtime.device import to_device
from common.runtime.errors import UserError
from common.runtime.files import make_folder, replacing, writing
from common.runtime.names import inside
from extras.explain.attribution import explain
from extras.explain.heatmaps import overlay, side_by_side
from models import VARIANTS, restore_model

LEAST = 256  # pixels of an image's shorter side, as it is drawn


class Explanation(NamedTuple):
    """Where the network looked, both maps (H/16, W/16)."""
    path: str
    image: Image.Image         # the part of the image that the network sees
    attention: torch.Tensor    # what the class token attended to
    attribution: torch.Tensor  # what spoke for the most probable class


class Explainer:
    """Draws where the network of a checkpoint looked. `saved` is the checkpoint's content, which a Predictor has used.

    Raises UserError for a network that is no VOLO.
    """

    def __init__(self, saved: dict[str, Any], batch_size: int, device: torch.device):
        if saved['model'] not in VARIANTS:
            raise UserError(f'EXPLAIN: {saved["model"]} is no VOLO, set it to False')
        self.saved = saved
        self.batch_size = batch_size
        self.device = device

    def draw(self, folder: Path, source: Source, names: Sequence[str]) -> dict[str, Path]:
        """Draw images of a source, by their names in tables, each beside its maps, as folder/NAME.png.

        Of an image of a list, NAME is the last part of its path, with a number where others have the same one. Returns
        {name: file} of those that can be read. Raises UserError.
        """
        name_of = {source.path(name): name for name in names}
        files = drawing_files(folder, source, names)
        drawn = {}
        for found in explanations(self.saved, list(name_of), self.batch_size, source.store, self.device):
            name = name_of[found.path]
            drawn[name] = files[name]
            write_sheet(drawn[name], found)
        return drawn

    def section(self, rows: Sequence[dict[str, Any]], drawn: dict[str, Path]) -> Section:
        """Return the section of report.html with the drawings of some rows of the tables."""
        pictures = []
        for row in rows:
            if row['path'] not in drawn:  # it can no longer be read
                continue
            sheet = Image.open(drawn[row['path']])
            pictures.append({'images': [as_uri(sheet, 3 * THUMBNAIL_SIDE)], 'wide': True,
                             'lines': prediction_lines(row)})
        return {'name': 'explain', 'heading': 'Where it looked', 'pictures': pictures, 'note':
                'Beside each image what the class token attended to, and what spoke for the class, both brightest '
                'where they are largest. The drawings are also in the folder explain.'}


def drawing_files(folder: Path, source: Source, names: Iterable[str]) -> dict[str, Path]:
    """Return a file of its own below `folder` for each image of a source, {its name in tables: file}. Raises BadName.
    """
    files = {}
    taken = set()      # without letter case, as Windows and macOS compare names
    count = Counter()  # of the images that belong at the same place
    for name in dict.fromkeys(names):
        below = source.below(name)
        while True:
            count[below] += 1
            drawing = f'{below}.png' if count[below] == 1 else f'{below} ({count[below]}).png'
            if drawing.casefold() not in taken:
                break
        taken.add(drawing.casefold())
        files[name] = Path(inside(folder, drawing))
    return files


def explanations(saved: dict[str, Any], paths: list[str] | list[Path], batch_size: int, store: Store,
                 device: torch.device) -> Iterator[Explanation]:
    """Yield the Explanation of each readable image of `paths`, in order. `saved` is the content of a VOLO's checkpoint.
    """
    net = restore_model(saved).to(device).eval()
    transform = Transform.from_dict(saved['transform'])
    scale = max(1, LEAST / min(transform.img_size))
    frame = fit(dataclasses.replace(transform, img_size=[round(scale * side) for side in transform.img_size]))
    batches = (paths[start:start + batch_size] for start in range(0, len(paths), batch_size))
    with Bar(total=len(paths), desc='explaining', unit='img') as bar:
        for batch in read_batches(batches, [transform], store):
            bar.update(len(batch.images))
            if batch.tensors is None:
                continue
            _, attention, attribution = explain(net, to_device(batch.tensors[0], device))
            readable = [path for path, error in zip(batch.images, batch.errors, strict=True) if not error]
            for path, attended, spoke in zip(readable, attention.cpu(), attribution.cpu(), strict=True):
                yield Explanation(path, frame(store.open(path, at_least=2 * LEAST)), attended, spoke)


def write_sheet(file: Path, found: Explanation) -> None:
    """Write an image beside its two maps as a PNG file. Raises UserError."""
    sheet = side_by_side({'image': found.image, 'class attention': overlay(found.image, found.attention),
                          'attribution': overlay(found.image, found.attribution)})
    with writing(file):
        make_folder(file.parent)
    with replacing(file) as aside:
        sheet.save(aside, 'PNG')
