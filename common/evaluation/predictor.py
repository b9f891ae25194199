"""The network of a checkpoint over a list of image files, each of which gets its logits or its error."""
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from common.data.cache import ImageCache
from common.data.images import BadImage
from common.data.loaders import in_turn, init_worker, own_batches
from common.data.stores import Files, Store
from common.data.transforms import Transform, eval_transform, fit, least_side
from common.evaluation.outliers import certainty, typicality
from common.runtime.console import Bar
from common.runtime.device import choose_amp_dtype, choose_device, describe_device
from common.runtime.distributed import gather
from common.runtime.errors import UserError
from common.runtime.parallel import parallel
from models import WeightsError, logits_and_features, restore_model


@dataclass
class Prediction:
    path: Path
    logits: torch.Tensor | None  # (classes,), fp32 on the CPU; None where the file cannot be read
    certainty: float             # from 0 to 1: the confidence, or less for a picture unlike those of val
    error: str                   # why it cannot, '' where it can


class ImageFiles(Dataset):
    """(transformed image, '') for every path, or (None, what is wrong with the file)."""

    def __init__(self, paths: list[Path], transform: Transform, store: Store):
        self.paths, self.transform = paths, eval_transform(transform)
        self.open = ImageCache(fit(transform), transform.img_size, least_side(transform), store)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor | None, str]:
        try:
            return self.transform(self.open(self.paths[index])), ''
        except BadImage as error:
            return None, str(error)


def collate(items: list) -> tuple[torch.Tensor | None, list[str]]:
    """(batch of the readable images or None, [error or '' for each item])."""
    images = [image for image, _ in items if image is not None]
    return default_collate(images) if images else None, [error for _, error in items]


@torch.no_grad()  # not inference_mode, which the threads of DataParallel would leave
def predict(saved: dict, name: str, paths: list[Path], batch_size: int, workers: int, use_amp: bool | str,
            use_dp: bool, store: Store = Files) -> list[Prediction]:
    """A Prediction for every path, in the same order; several processes predict a share each, and all have the whole.

    `saved` is the content of a checkpoint of train.py, `name` what errors call it. The logits are those of the network
    divided by the checkpoint's temperature. `use_amp` may be 'auto': as in training. Raises UserError for weights that
    do not fit or give non-finite logits.
    """
    device = choose_device()
    amp_dtype = choose_amp_dtype(device) if (trained_with_amp(saved) if use_amp == 'auto' else use_amp) else None
    print(describe_device(device, amp_dtype))
    indices = own_batches(len(paths), batch_size)
    loader = DataLoader(ImageFiles(paths, Transform.from_dict(saved['transform']), store), batch_sampler=indices,
                        collate_fn=collate, pin_memory=device.type == 'cuda', num_workers=min(workers, len(paths)),
                        worker_init_fn=init_worker)
    batches = iter(loader)  # reading begins while the network is built
    try:
        net = restore_model(saved)
    except WeightsError as error:
        raise UserError(f'{name}: {error}') from error
    model = parallel(net.to(device), device, amp_dtype, use_dp, look=logits_and_features).eval()
    predictions = []
    with Bar(total=sum(map(len, indices)), desc='predicting', unit='img') as bar:
        for batch, (images, errors) in zip(indices, batches, strict=True):
            found = iter(() if images is None else classify(model, images.to(device, non_blocking=True), saved, name))
            predictions.append([Prediction(paths[index], None, 0., error) if error else
                                Prediction(paths[index], *next(found), '')
                                for index, error in zip(batch, errors, strict=True)])
            bar.update(len(batch))
    return list(itertools.chain.from_iterable(in_turn(gather(predictions))))


def trained_with_amp(saved: dict) -> bool:
    """Whether a checkpoint's network was trained and validated in mixed precision."""
    if 'amp_dtype' in saved:
        return saved['amp_dtype'] is not None
    settings = saved.get('settings')  # in checkpoints of earlier versions
    return not isinstance(settings, dict) or settings.get('USE_AMP') is not False


def temperature_of(saved: dict) -> float:
    """What train.py found to fit the validation set best; 1 in checkpoints of earlier versions."""
    best = saved.get('best')
    value = best.get('temperature') if isinstance(best, dict) else None
    return value if isinstance(value, float) and 0 < value < math.inf else 1.


def outliers_of(saved: dict, dim: int) -> dict | None:
    """What train.py knew of the features (N, dim) of the validation set; None in checkpoints that do not tell."""
    known, shapes = saved.get('outliers'), {'mean': (dim,), 'precision': (dim, dim), 'share': ()}
    whole = isinstance(known, dict) and all(
        isinstance(known.get(name), torch.Tensor) and known[name].dtype == torch.float32
        and known[name].shape == shapes.get(name, known[name].shape[:1]) and known[name].isfinite().all()
        for name in ('mean', 'precision', 'share', 'squares'))
    return known if whole else None


def classify(model: torch.nn.Module, images: torch.Tensor, saved: dict,
             name: str) -> Iterator[tuple[torch.Tensor, float]]:
    """Yields the calibrated logits (classes,) and the certainty of each image of a batch (B, 3, H, W)."""
    logits, features = model(images)
    logits = logits.float().cpu() / temperature_of(saved)
    if not logits.isfinite().all():
        raise UserError(f'{name}: its weights give non-finite logits')
    certain = logits.softmax(1).amax(1)
    known = None if features is None else outliers_of(saved, features.shape[1])
    if known:
        certain = certainty(certain, typicality(features.float().cpu(), known))
    yield from zip(logits, certain.tolist(), strict=True)
