"""The networks of checkpoints, put to work on images.

    from common.evaluation.predictor import Predictor

    predictor = Predictor('checkpoints/volo_d1/best.pth', unknown_below=0.5)
    for found in predictor(['photos/1.jpg', 'photos/2.jpg']):
        print(found.image, found.label, found.confidence, found.error)
"""
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from common.data.folders import Files, Store, is_side, side_folder, side_folders
from common.data.loaders import in_turn
from common.data.sources import AnyImage, Batch, as_images, read_batches
from common.data.split import describe_draw, read_split_settings
from common.data.transforms import Transform
from common.evaluation.outliers import certainty, typicality
from common.evaluation.validate import EvalModel
from common.runtime.console import printable
from common.runtime.device import choose_amp_dtype, choose_device, parallel, to_device
from common.runtime.errors import UserError, extra
from common.runtime.processes import RANK, WORLD_SIZE, gather
from models import WeightsError, check_saved, restore_model
from models.weights import are_numbers, is_ordinary, read_file

# What the steps after training read in a checkpoint of train.py, which may come from anyone

FORMAT = 2  # of the checkpoint's content; raised when an older test.py could no longer read it


def paths_of(checkpoints: str | Sequence[str]) -> tuple[str, ...]:
    """Return the paths in a constant that is one path, several with commas in between, or a tuple of them."""
    if not isinstance(checkpoints, str):
        return tuple(checkpoints)
    if Path(checkpoints).exists():  # its name may have a comma
        return (checkpoints,)
    return tuple(path.strip() for path in checkpoints.split(','))


def load(path: Path | str) -> dict[str, Any]:
    """Return a checkpoint's content. Raises UserError for a file that is missing, damaged or something else."""
    try:
        content = read_file(path)
    except WeightsError as error:
        raise UserError(f'{error}: run train.py first, or give the path of one of its checkpoints') from None
    if not isinstance(content, dict) or not are_numbers([content.get('format')], 1, 0, 1000):
        raise UserError(f'{path}: not a checkpoint of train.py')
    if content['format'] != FORMAT:
        raise UserError(f'{path}: written by another version of this project (its format is {content["format"]}, this '
                        f'one reads {FORMAT}): use that version')
    return content


def load_network(path: Path | str) -> dict[str, Any]:
    """Return the content of a checkpoint that holds all that restore_model needs. Raises UserError, naming the file."""
    saved = load(path)
    try:
        check_saved(saved)
    except WeightsError as error:
        raise UserError(f'{path}: {error}') from None
    return saved


def restore(name: str, saved: dict[str, Any]) -> nn.Module:
    """Return the network of a checkpoint. Raises UserError, naming the checkpoint `name`."""
    try:
        return restore_model(saved)
    except WeightsError as error:
        raise UserError(f'{name}: {error}') from error


def trained_with_amp(saved: dict[str, Any]) -> bool:
    """Return whether a checkpoint says that its network was trained and validated in mixed precision."""
    return isinstance(saved.get('amp_dtype'), str)


def temperature_of(saved: dict[str, Any]) -> float:
    """Return the number that logits are divided by: what fits the validation set best, by the checkpoint, else 1."""
    best = saved.get('best')
    if not isinstance(best, dict):
        return 1.
    temperature = best.get('temperature')
    if isinstance(temperature, float) and 0 < temperature < math.inf:
        return temperature
    return 1.


def outliers_of(saved: dict[str, Any], dim: int) -> dict[str, torch.Tensor] | None:
    """Return what a checkpoint knows of the features (N, dim) of the validation set, for `typicality`, or None."""
    known = saved.get('outliers')
    if not isinstance(known, dict):
        return None
    for name in ('mean', 'precision', 'share', 'squares'):
        tensor = known.get(name)
        if not is_ordinary(tensor) or tensor.dtype != torch.float32 or not tensor.isfinite().all():
            return None
    shapes_fit = (known['mean'].shape == (dim,) and known['precision'].shape == (dim, dim)
                  and known['share'].ndim == 0 and known['squares'].ndim == 1)
    return known if shapes_fit else None


def role_in_training(folder: str, saved: dict[str, Any]) -> str:
    """Return a sentence about what a checkpoint's training did with the images of a folder, by which the accuracy on
    them is too high; '' for others.
    """
    path = os.path.abspath(folder)
    source = saved.get('source')
    if isinstance(source, str) and os.path.abspath(source) == path:
        return 'The network has learnt from most of these images: on others the accuracy will be lower.'
    data_dir = data_dir_of(saved)
    if data_dir is None:
        return ''
    own = os.path.abspath(data_dir)
    place, name = os.path.split(path)
    if (is_side(name, 'train') and place == own) or (is_side(name, 'val') and are_folds(place, own)):
        return 'The network has learnt from these images: on others the accuracy will be lower.'
    if place != own:
        return ''
    draw = saved.get('split')
    if isinstance(draw, str) and draw != describe_draw(read_split_settings(Path(data_dir))):
        return (f'{printable(data_dir)} was drawn anew after the training, so that the network has learnt from some of '
                'these images, and the accuracy is too high: train it again.')
    if is_side(name, 'val'):
        return ('These images chose the weights, and perhaps your settings, so that on others the accuracy will be a '
                'little lower: makedata.py --test-ratio 0.15, then train.py again, keeps a part for this.')
    return ''


def are_folds(one: str, other: str) -> bool:
    """Return whether two paths are those of different folds of FOLDS, each of which learns from the val of the other.
    """
    names = [os.path.basename(one), os.path.basename(other)]
    return one != other and os.path.dirname(one) == os.path.dirname(other) and all(
        re.fullmatch(r'fold\d+', name) for name in names)


def data_dir_of(saved: dict[str, Any]) -> str | None:
    """Return the DATA_DIR with which a checkpoint was trained, or None where it does not say."""
    settings = saved.get('settings')
    data_dir = settings.get('DATA_DIR') if isinstance(settings, dict) else None
    return data_dir if isinstance(data_dir, str) else None


def usual_test_dir(checkpoint: str) -> str:
    """Return data/test, if that is there, or data/val. Raises UserError if the checkpoint was trained on other images.

    A checkpoint may come from anyone, so it does not choose the folder that is read.
    """
    data_dir = data_dir_of(load(checkpoint))
    if data_dir is not None and os.path.abspath(data_dir) != os.path.abspath('data'):
        raise UserError(f'TEST_DIR = None is data/test or data/val, but {checkpoint} was trained on '
                        f'{printable(data_dir)}: set TEST_DIR to its test or val, or to any other folder')
    return str(side_folder('data', 'test' if 'test' in side_folders('data') else 'val'))


# From images to predictions

UNKNOWN = 'unknown'  # the label of an image that is not recognised, unless a class is called so
TOP = 5              # classes that a prediction lists


def free_label(label: str, classes: Iterable[str]) -> str:
    """Return a label for images that get none of the classes: this one, or a longer one where a class is called so."""
    taken = {name.casefold() for name in classes}  # some systems have one folder for names in any letter case
    while label.casefold() in taken:
        label += ' (no class)'
    return label


@dataclass
class Prediction:
    """What a Predictor says of an image. Where it cannot be read, `error` says why and the rest is empty."""
    image: AnyImage                     # what the Predictor was given
    label: str = ''                     # the most probable class, or that of images that are not recognised
    confidence: float = 0.              # the probability of the most probable class
    certainty: float = 0.               # from 0 to 1: the confidence, or less for an image unlike the validation set
    top: list[tuple[str, float]] = field(default_factory=list)  # (class, probability) of the TOP most probable classes
    logits: torch.Tensor | None = None  # (classes,), divided by the temperature, fp32 on the CPU
    error: str = ''                     # why the image cannot be read
    is_unknown: bool = False            # whether the image is not recognised
    features: torch.Tensor | None = None  # (dim,), of the first network, with `keep_features`


class Look(NamedTuple):
    """What the networks make of images."""
    logits: torch.Tensor           # (B, classes), means over the networks, divided by the temperature
    typical: torch.Tensor | None   # (B,), how typical they are, mean over the networks that know
    features: torch.Tensor | None  # (B, dim), of the first network


@dataclass
class Member:
    """One of the networks whose logits a Predictor averages."""
    name: str               # what errors call it: the path of its checkpoint
    saved: dict[str, Any]   # the content of its checkpoint
    model: nn.Module        # images (B, 3, H, W) -> logits (B, classes), features (B, dim) or None
    transform: int = 0      # the place of its transform in Predictor.transforms


class Predictor:
    """Classifies images with the network of a checkpoint of train.py, or with several whose logits are averaged.

    `checkpoints` are paths, or contents of checkpoints by the name that errors call them. With `average_weights` there
    is one network, whose weights are the mean of all: for checkpoints of one run. An image whose most probable class
    has a certainty below `unknown_below` gets the label `unknown_label`. With `tta`, test-time augmentation, an image
    with a confidence below `tta_below` is looked at again in the views that training had, and the logits are averaged.
    `use_amp='auto'` means mixed precision if training had it; `use_gpu` is test.py's USE_GPU. With `keep_features` each
    prediction has the features of its image. Raises UserError, naming the file.
    """

    def __init__(self, checkpoints: str | Path | Sequence[str | Path] | dict[str, dict], *, batch_size: int = 32,
                 unknown_below: float = 0., tta: bool = False, tta_below: float = 1., average_weights: bool = False,
                 use_amp: bool | str = 'auto', use_gpu: bool | str = 'auto', use_dp: bool = True,
                 keep_features: bool = False):
        if isinstance(checkpoints, (str, Path)):
            checkpoints = [checkpoints]
        if not isinstance(checkpoints, dict):
            checkpoints = {str(path): load_network(path) for path in checkpoints}
        self.batch_size = batch_size
        self.unknown_below = unknown_below
        self.tta_below = tta_below
        self.keep_features = keep_features
        self.members = [Member(name, saved, restore(name, saved)) for name, saved in checkpoints.items()]
        self.origins = [{name: saved.get(name) for name in ('settings', 'split', 'source')}  # for role_in_training
                        for saved in checkpoints.values()]
        first = self.members[0]
        self.classes = first.saved['classes']
        self.unknown_label = free_label(UNKNOWN, self.classes)
        self.device = choose_device(use_gpu)
        if use_amp == 'auto':
            use_amp = trained_with_amp(first.saved)
        self.amp_dtype = choose_amp_dtype(self.device) if use_amp else None
        self.views = []
        if tta:
            with extra('TTA'):
                from extras.tta import trained_views
            self.views = trained_views(first.saved)
        if average_weights:
            self.members = [average(self.members)]
        self.transforms: list[Transform] = []
        for member in self.members:
            if member.saved['classes'] != self.classes:
                raise UserError(f'{member.name}: its classes are not those of {first.name}: choose checkpoints of '
                                'the same classes')
            transform = Transform.from_dict(member.saved['transform'])
            if transform not in self.transforms:
                self.transforms.append(transform)
            member.transform = self.transforms.index(transform)
            model = EvalModel(member.model.to(self.device), self.amp_dtype)
            member.model = parallel(model, self.device, use_dp).eval()

    def __call__(self, images: AnyImage | Iterable[AnyImage], store: Store = Files,
                 workers: int = 0) -> Iterator[Prediction]:
        """Yield a Prediction for every image, in the same order, as soon as its batch is done; a single image has one.

        An image is a path in `store`, the bytes of an image file, a PIL image, or an array (H, W, 3) of uint8 in RGB,
        not OpenCV's BGR; also grey as (H, W) or (H, W, 1), and (H, W, 4) with transparency, which comes on white. What
        cannot be read, or is none of these, such as a tensor or an array of floats, has a Prediction with an `error`.
        Up to `workers` processes read the images, no more of them than needed. Raises UserError for weights that give
        non-finite logits.
        """
        for predictions in self.batches(images, store, workers):
            yield from predictions

    def batches(self, images: AnyImage | Iterable[AnyImage], store: Store = Files,
                workers: int = 0) -> Iterator[list[Prediction]]:
        """Yield what __call__ does, batch by batch.

        Several processes of torchrun, which must be given the same images, classify a share each, and all get the
        whole.
        """
        own = read_batches(self.own_batches(as_images(images)), self.transforms, store, workers, self.batch_size)
        while True:
            batch = next(own, None)
            classified = [] if batch is None else [self.classify(batch)]
            from_all = in_turn(gather(classified))
            if not from_all:
                return
            yield from from_all

    def own_batches(self, images: Iterable[AnyImage]) -> Iterator[list[AnyImage]]:
        """Yield the batches that fall to this process: each process takes the next."""
        batch = []
        turn = 0
        for image in images:
            batch.append(image)
            if len(batch) == self.batch_size:
                if turn == RANK:
                    yield batch
                batch = []
                turn = (turn + 1) % WORLD_SIZE
        if batch and turn == RANK:
            yield batch

    @torch.no_grad()  # not inference_mode, which the threads of DataParallel would leave
    def classify(self, batch: Batch) -> list[Prediction]:
        """Return the Prediction of each image of a batch."""
        if batch.tensors is None:
            return [Prediction(image, error=error) for image, error in zip(batch.images, batch.errors, strict=True)]
        tensors = [to_device(tensor, self.device) for tensor in batch.tensors]
        logits, typical, features = self.look(tensors)
        unsure = logits.softmax(1).amax(1) < self.tta_below
        if self.views and unsure.any():
            chosen = [tensor[unsure.to(self.device)] for tensor in tensors]
            logits[unsure] = self.mean_over_views(logits[unsure], chosen)
        probabilities, indices = logits.softmax(1).topk(min(TOP, len(self.classes)))
        confidences = probabilities[:, 0]
        certain = confidences if typical is None else certainty(confidences, typical)

        predictions = []
        row = 0  # in the tensors, which have no row for an unreadable image
        for image, error in zip(batch.images, batch.errors, strict=True):
            if error:
                predictions.append(Prediction(image, error=error))
                continue
            names = [self.classes[index] for index in indices[row].tolist()]
            is_unknown = certain[row].item() < self.unknown_below
            label = self.unknown_label if is_unknown else names[0]
            predictions.append(Prediction(
                image, label, is_unknown=is_unknown, confidence=confidences[row].item(), certainty=certain[row].item(),
                top=list(zip(names, probabilities[row].tolist(), strict=True)), logits=logits[row],
                features=features[row] if self.keep_features and features is not None else None))
            row += 1
        return predictions

    def mean_over_views(self, logits: torch.Tensor, tensors: list[torch.Tensor]) -> torch.Tensor:
        """Return the mean of logits (B, classes) of images and of those of their other views.

        `tensors` are the images for each transform (B, 3, H, W).
        """
        looks = [logits]
        for view in self.views:
            looks.append(self.look([view(tensor) for tensor in tensors]).logits)
        return torch.stack(looks).mean(0)

    def look(self, tensors: list[torch.Tensor]) -> Look:
        """Return what the networks make of images; `tensors` are those for each transform (B, 3, H, W)."""
        all_logits = []
        all_typical = []
        all_features = []
        for member in self.members:
            logits, features = member.model(tensors[member.transform])
            logits = logits.float().cpu() / temperature_of(member.saved)
            if not logits.isfinite().all():
                raise UserError(f'{member.name}: its weights give non-finite logits: choose another checkpoint')
            all_logits.append(logits)
            all_features.append(None if features is None else features.float().cpu())
            if features is None:
                continue
            known = outliers_of(member.saved, features.shape[1])
            if known is not None:
                all_typical.append(typicality(all_features[-1], known))
        typical = torch.stack(all_typical).mean(0) if all_typical else None
        return Look(torch.stack(all_logits).mean(0), typical, all_features[0])


def average(members: list[Member]) -> Member:
    """Return a network with the mean of the weights of several of the same kind. Raises UserError for others.

    Its features are its own, so that what is known of the others' is left out.
    """
    first = members[0]
    for member in members[1:]:
        for key in ('model', 'model_kwargs', 'classes', 'transform'):
            if member.saved[key] != first.saved[key]:
                raise UserError(f'{member.name}: its {key} is not that of {first.name}, so their weights cannot be '
                                'averaged: set AVERAGE_WEIGHTS = False')
    states = [member.model.state_dict() for member in members]
    mean = {}
    for name, tensor in states[0].items():
        if tensor.is_floating_point():
            mean[name] = torch.stack([state[name] for state in states]).mean(0)
        else:
            mean[name] = tensor
    first.model.load_state_dict(mean)
    powers = [math.log(temperature_of(member.saved)) for member in members]
    temperature = math.exp(sum(powers) / len(powers))
    saved = {**first.saved, 'state_dict': mean, 'best': {'temperature': temperature}, 'outliers': None}
    return Member(first.name, saved, first.model)
