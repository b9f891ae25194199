"""Pictures with what the answer of a VOLO rests on."""
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from PIL import Image

from common.data.folders import Store
from common.data.reading import read_batches
from common.data.transforms import Transform, fit
from common.runtime.console import Bar
from common.runtime.device import to_device
from common.runtime.files import replacing
from extras.explain.attribution import explain
from extras.explain.heatmaps import overlay, side_by_side
from models import restore_model

LEAST = 256  # pixels of a picture's shorter side, as it is drawn

Explanation = tuple[Path, Image.Image, torch.Tensor, torch.Tensor]


def explanations(saved: dict, paths: list[Path], batch_size: int, store: Store,
                 device: torch.device) -> Iterator[Explanation]:
    """Yields (path, the part of the picture that the network sees, its class attention, its attribution) of readable
    pictures, both (H/16, W/16).

    `saved` is the content of a checkpoint of a VOLO that a Predictor has used.
    """
    net = restore_model(saved).to(device).eval()
    transform = Transform.from_dict(saved['transform'])
    scale = max(1, LEAST / min(transform.img_size))
    frame = fit(dataclasses.replace(transform, img_size=[round(scale * side) for side in transform.img_size]))
    batches = (paths[start:start + batch_size] for start in range(0, len(paths), batch_size))
    with Bar(total=len(paths), desc='explaining', unit='img') as bar:
        for batch, images, errors in read_batches(batches, [transform], store):
            maps = () if images is None else explain(net, to_device(images[0], device))[1:]
            found = zip(*(values.cpu() for values in maps), strict=True)
            for path, error in zip(batch, errors, strict=True):
                bar.update()
                if not error:
                    yield path, frame(store.open(path, at_least=2 * LEAST)), *next(found)


def draw_explanations(folder: Path, explained: Iterable[tuple[Path, Image.Image, torch.Tensor, torch.Tensor]],
                      names: dict[Path, str]) -> dict[str, Path]:
    """Each picture beside its class attention and its attribution, as folder/NAME.png: `explained` yields its path,
    itself and the two maps, `names` is {path: name}.

    Returns {name: file}. Raises UserError.
    """
    drawn = {}
    for path, image, attention, attribution in explained:
        sheet = side_by_side({'picture': image, 'class attention': overlay(image, attention),
                              'attribution': overlay(image, attribution)})
        file = drawn[names[path]] = folder / f'{names[path]}.png'
        with replacing(file) as aside:
            aside.parent.mkdir(parents=True, exist_ok=True)
            sheet.save(aside, 'PNG')
    return drawn
