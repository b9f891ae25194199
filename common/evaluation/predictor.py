"""The networks of checkpoints, put to work on pictures.

    from common.evaluation.predictor import Predictor

    predictor = Predictor('checkpoints/volo_d1/best.pth', unknown_below=0.5)
    for found in predictor(['photos/1.jpg', 'photos/2.jpg']):
        print(found.picture, found.label, found.confidence, found.error)
"""
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from common.data.folders import Files, Store
from common.data.loaders import in_turn
from common.data.reading import Batch, Picture, read_batches
from common.data.transforms import Transform
from common.evaluation.certainty import certainty, typicality
from common.evaluation.validate import EvalModel
from common.runtime.device import choose_amp_dtype, choose_device, parallel, to_device
from common.runtime.errors import UserError, extra
from common.runtime.processes import RANK, WORLD_SIZE, gather
from models import WeightsError, check_saved, restore_model
from models.weights import read_file

# What the steps after training read in a checkpoint of train.py

FORMAT = 2  # of the checkpoint's content; raised when an older test.py could no longer read it


def load(path: Path | str) -> dict:
    """A checkpoint's content. Raises UserError for a file that is missing, damaged or something else."""
    try:
        content = read_file(path)
    except WeightsError as error:
        raise UserError(f'{error}: run train.py first, or name one of its checkpoints') from None
    if not isinstance(content, dict) or not isinstance(content.get('format'), int):
        raise UserError(f'{path}: not a checkpoint of train.py')
    if content['format'] != FORMAT:
        raise UserError(f'{path}: written by another version of this project (its format is {content["format"]}, this '
                        f'one reads {FORMAT}): use that version')
    return content


def load_network(path: Path | str) -> dict:
    """The content of a checkpoint that holds all that restore_model needs. Raises UserError, naming the file."""
    saved = load(path)
    try:
        check_saved(saved)
    except WeightsError as error:
        raise UserError(f'{path}: {error}') from None
    return saved


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
UNKNOWN = 'unknown'
TOP = 5


@dataclass
class Prediction:
    """What a Predictor says of a picture. Where it cannot be read, there is an error and nothing else."""
    picture: Picture
    label: str = ''                     # the most probable class, or 'unknown'
    confidence: float = 0.              # probability of the most probable class
    certainty: float = 0.               # from 0 to 1: the confidence, or less for a picture unlike those of val
    top: list[tuple[str, float]] = field(default_factory=list)  # the TOP most probable classes with their probabilities
    logits: torch.Tensor | None = None  # (classes,), calibrated, fp32 on the CPU
    error: str = ''                     # why it cannot be read


@dataclass
class Member:
    """One of the networks that a Predictor averages."""
    name: str
    saved: dict            # its checkpoint
    model: nn.Module       # images (B, 3, H, W) -> logits (B, classes), features (B, dim) or None
    transform: int = 0     # the number of its transform among those of the Predictor


class Predictor:
    """Names pictures with the network of a checkpoint of train.py, or of several whose logits are averaged.

    `checkpoints` are paths, or contents of checkpoints by the name that errors call them. With `average_weights` there
    is one network, whose weights are the mean of all: for checkpoints of one run. A picture of which the most probable
    class has a certainty below `unknown_below` is 'unknown'. With `tta`, test-time augmentation, one whose confidence
    is below `tta_below` is looked at again, mirrored and turned as in training, and the logits are averaged.
    `use_amp='auto'` is mixed precision if training had it; `use_gpu` is test.py's USE_GPU. Raises UserError,
    naming the file.
    """

    def __init__(self, checkpoints: str | Path | Sequence[str | Path] | dict[str, dict], *, batch_size: int = 32,
                 unknown_below: float = 0., tta: bool = False, tta_below: float = 1., average_weights: bool = False,
                 use_amp: bool | str = 'auto', use_gpu: bool | str = 'auto', use_dp: bool = True):
        if not isinstance(checkpoints, dict):
            names = [checkpoints] if isinstance(checkpoints, (str, Path)) else checkpoints
            checkpoints = {str(name): load_network(name) for name in names}
        self.members = [Member(name, saved, restore(name, saved)) for name, saved in checkpoints.items()]
        first = self.members[0].saved
        self.classes, self.device = first['classes'], choose_device(use_gpu)
        if average_weights:
            self.members = [average(self.members)]
        amp = trained_with_amp(first) if use_amp == 'auto' else use_amp
        self.amp_dtype = choose_amp_dtype(self.device) if amp else None
        self.transforms = []
        for member in self.members:
            if member.saved['classes'] != self.classes:
                raise UserError(f'{member.name}: its classes are not those of {self.members[0].name}')
            transform = Transform.from_dict(member.saved['transform'])
            if transform not in self.transforms:
                self.transforms.append(transform)
            member.transform = self.transforms.index(transform)
            model = EvalModel(member.model.to(self.device), self.amp_dtype)
            member.model = parallel(model, self.device, use_dp).eval()
        self.views = []
        if tta:
            with extra('TTA'):
                from extras.tta import trained_views
            self.views = trained_views(first)
        self.batch_size, self.unknown_below, self.tta_below = batch_size, unknown_below, tta_below

    def __call__(self, pictures: Iterable[Picture], store: Store = Files, workers: int = 0) -> Iterator[Prediction]:
        """Yields a Prediction for every picture, in the same order, as soon as its batch is done.

        A picture is a path in `store`, a PIL image, or an array (H, W) or (H, W, 3) of uint8. So many worker processes
        read them, no more of them than needed. Several processes of torchrun, which must name the same pictures,
        predict a share each, and all get the whole. Raises UserError for weights that give non-finite logits.
        """
        own = read_batches(self.own_batches(pictures), self.transforms, store, workers)
        while True:
            batch = next(own, None)
            turn = in_turn(gather([] if batch is None else [self.name(batch)]))
            if not turn:
                return
            for predictions in turn:
                yield from predictions

    def own_batches(self, pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
        """The batches that fall to this process: each takes the next."""
        batch, turn = [], 0
        for picture in pictures:
            batch.append(picture)
            if len(batch) == self.batch_size:
                if turn == RANK:
                    yield batch
                batch, turn = [], (turn + 1) % WORLD_SIZE
        if batch and turn == RANK:
            yield batch

    @torch.no_grad()  # not inference_mode, which the threads of DataParallel would leave
    def name(self, batch: Batch) -> list[Prediction]:
        """The Prediction of each picture of a batch."""
        pictures, images, errors = batch
        if images is None:
            return [Prediction(picture, error=error) for picture, error in zip(pictures, errors, strict=True)]
        images = [to_device(tensor, self.device) for tensor in images]
        logits, typical = self.look(images)
        unsure = logits.softmax(1).amax(1) < self.tta_below
        if self.views and unsure.any():
            chosen = [tensor[unsure.to(self.device)] for tensor in images]
            looks = [logits[unsure]] + [self.look([view(tensor) for tensor in chosen])[0] for view in self.views]
            logits[unsure] = torch.stack(looks).mean(0)
        shares, indices = logits.softmax(1).topk(min(TOP, len(self.classes)))
        certain = shares[:, 0] if typical is None else certainty(shares[:, 0], typical)
        found = zip(logits, shares.tolist(), indices.tolist(), certain.tolist(), strict=True)
        return [Prediction(picture, error=error) if error else self.describe(picture, *next(found))
                for picture, error in zip(pictures, errors, strict=True)]

    def describe(self, picture: Picture, logits: torch.Tensor, shares: list[float], indices: list[int],
                 certain: float) -> Prediction:
        top = [(self.classes[index], share) for index, share in zip(indices, shares, strict=True)]
        label = UNKNOWN if certain < self.unknown_below else top[0][0]
        return Prediction(picture, label, shares[0], certain, top, logits)

    def look(self, images: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(calibrated logits (B, classes), typicality (B,) or None), means over the networks, of the images for each
        transform (B, 3, H, W).
        """
        found, typical = [], []
        for member in self.members:
            logits, features = member.model(images[member.transform])
            found.append(logits.float().cpu() / temperature_of(member.saved))
            if not found[-1].isfinite().all():
                raise UserError(f'{member.name}: its weights give non-finite logits')
            known = None if features is None else outliers_of(member.saved, features.shape[1])
            if known:
                typical.append(typicality(features.float().cpu(), known))
        return torch.stack(found).mean(0), torch.stack(typical).mean(0) if typical else None


def restore(name: str, saved: dict) -> nn.Module:
    """The network of a checkpoint. Raises UserError."""
    try:
        return restore_model(saved)
    except WeightsError as error:
        raise UserError(f'{name}: {error}') from error


def average(members: list[Member]) -> Member:
    """A network with the mean of the weights of several of the same kind. Raises UserError for others.

    Its features are its own, so that what is known of theirs is left out.
    """
    first = members[0]
    for member in members[1:]:
        differ = [key for key in ('model', 'model_kwargs', 'classes', 'transform')
                  if member.saved[key] != first.saved[key]]
        if differ:
            raise UserError(f'{member.name}: its {differ[0]} is not that of {first.name}, so their weights have no '
                            'mean: average logits')
    states = [member.model.state_dict() for member in members]
    first.model.load_state_dict({
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[0].items()})
    temperature = math.exp(sum(math.log(temperature_of(member.saved)) for member in members) / len(members))
    first.saved = {**first.saved, 'best': {'temperature': temperature}, 'outliers': None}
    return first
