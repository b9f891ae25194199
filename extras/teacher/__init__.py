"""TEACHER: what a trained network says of the very image that is learnt from, in place of its label.

The teacher sees the same crop, turned and mixed in the same way (Beyer et al., arXiv:2106.05237). With TOKEN_LABEL it
says what each token shows (Jiang et al., arXiv:2104.10858). It also labels the images of DATA_DIR/unlabelled.
"""
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from common.data.datasets import Split
from common.data.listing import describe_left_out, list_images
from common.data.transforms import Transform
from common.evaluation.predictor import Predictor, load_network, paths_of, restore, temperature_of, trained_with_amp
from common.runtime.console import Bar
from common.runtime.device import choose_amp_dtype, parallel
from common.runtime.disks import is_folder
from common.runtime.errors import UserError
from common.runtime.machine import worker_count
from models import VOLO, combine_logits
from models.cost import multiply_adds
from models.volo import STRIDE

UNLABELLED = 'unlabelled'  # the folder in DATA_DIR


class Member(nn.Module):
    """A network that teaches: images (B, 3, H, W), normalised for the one that learns -> probabilities.

    They are (B, classes), with `grid` (B, 1 + N, classes): first of the image, then of the N = height · width tokens of
    the learner's grid.
    """

    def __init__(self, name: str, saved: dict, learner: Transform, grid: tuple[int, int] | None, device: torch.device):
        super().__init__()
        own = Transform.from_dict(saved['transform'])
        net = restore(name, saved)
        self.size = tuple(own.img_size)
        self.net = net.eval().requires_grad_(False)
        self.temperature = temperature_of(saved)
        self.amp_dtype = choose_amp_dtype(device) if trained_with_amp(saved) else None
        self.grid = grid
        mean, std, own_mean, own_std = (torch.tensor(values)[:, None, None]
                                        for values in (learner.mean, learner.std, own.mean, own.std))
        self.register_buffer('scale', std / own_std)
        self.register_buffer('shift', (mean - own_mean) / own_std)

    def check(self, name: str, learner: Transform) -> None:
        """Raise UserError for a network that does not say what it sees where, or whose logits are not finite."""
        try:
            found = self(torch.zeros(1, 3, *learner.img_size, device=self.scale.device))
        except Exception as error:  # each network fails in a way of its own
            if self.grid is None:
                raise
            raise UserError(f'TEACHER: {name} does not say what each part of an image shows: set TOKEN_LABEL = False, '
                            'or choose a VOLO with return_dense or a convolutional network') from error
        if not found.isfinite().all():
            raise UserError(f'TEACHER: {name}: its weights give non-finite logits')

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[2:] != self.size:
            images = F.interpolate(images, self.size, mode='bilinear', antialias=True)
        images = images * self.scale + self.shift
        with torch.autocast(images.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            if self.grid is None:
                return self.probabilities(self.net(images))
            logits, maps = self.look_at_places(images)
        maps = self.probabilities(maps)                                   # (B, classes, h, w)
        maps = F.interpolate(maps, self.grid, mode='bilinear', antialias=True)  # (B, classes, height, width)
        return torch.cat([self.probabilities(logits)[:, None], maps.flatten(2).mT], 1)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return (logits.float() / self.temperature).softmax(1)

    def look_at_places(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (B, classes), and those of each place of the network's last map (B, classes, h, w)."""
        net = self.net
        if isinstance(net, VOLO):
            tokens, box = net.forward_features(images)
            net.training = True  # of the network alone, not of its layers: it returns the logits of the tokens, too
            logits, token_logits, _ = net.forward_head(tokens, box)
            net.training = False
            return combine_logits(logits, token_logits), token_logits.mT.unflatten(2, tokens.shape[1:3])
        features = net.forward_features(images)                           # (B, C, h, w)
        places = features.permute(0, 2, 3, 1).flatten(0, 2)[..., None, None]  # (B · h · w, C, 1, 1)
        maps = net.forward_head(places).unflatten(0, (len(images), *features.shape[2:]))
        return net.forward_head(features), maps.permute(0, 3, 1, 2)


class Teacher:
    """(images (B, 3, H, W), targets (B, classes)) -> targets that are the teachers' word to the share `weight`.

    They are (B, classes), with `grid` (B, 1 + N, classes) as token_label_loss takes them.
    """

    def __init__(self, members: Sequence[nn.Module], weight: float, flop: float | None):
        self.members = members
        self.weight = weight
        self.flop = flop  # floating-point operations for an image; None: unknown

    def __call__(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        found = torch.stack([member(images) for member in self.members]).mean(0)
        if found.ndim > targets.ndim:
            targets = targets[:, None]
        return torch.lerp(targets, found, self.weight)

    def add_flop(self, image_flop: float | None) -> float | None:
        """Return the floating-point operations of training on an image and asking the teachers; None: unknown."""
        if image_flop is None or self.flop is None:
            return None
        return image_flop + self.flop


def build_teacher(checkpoints: str | tuple[str, ...], weight: float, learner: Transform, by_token: bool,
                  device: torch.device, use_dp: bool) -> Teacher:
    """Return the networks of TEACHER on the device, for images with the transform `learner`; with `by_token` they say
    what each token shows, too. Raises UserError.
    """
    grid = None
    if by_token:
        grid = tuple(side // STRIDE for side in learner.img_size)
    members = []
    for path in paths_of(checkpoints):
        member = Member(path, load_network(path), learner, grid, device).to(device)
        member.check(path, learner)
        members.append(member)
    return Teacher([parallel(member, device, use_dp) for member in members], weight, count_flop(members))


def count_flop(members: Sequence[Member]) -> float | None:
    """Return the floating-point operations of all members for an image, None where they cannot be counted."""
    try:
        return sum(2. * multiply_adds(member.net, member.size) for member in members)
    except Exception:  # a network of timm that looks into its numbers: they are fake there
        return None


def load_teachers(checkpoints: str | tuple[str, ...], classes: list[str], out: Path) -> dict[str, dict]:
    """Return {path: content} of the checkpoints of TEACHER. Raises UserError for networks of other classes, and for a
    file in OUTPUT_DIR = `out`, which a checkpoint of this run would replace: resumed, the run would learn from itself.
    """
    teachers = {}
    for path in paths_of(checkpoints):
        try:
            saved = load_network(path)
        except UserError as error:
            raise UserError(f'TEACHER: {error}') from None
        if saved['classes'] != classes:
            raise UserError(f'TEACHER: {path}: its classes, {", ".join(saved["classes"])}, are not those of DATA_DIR')
        if Path(path).resolve().parent == out.resolve():
            raise UserError(f'TEACHER: {path} lies in OUTPUT_DIR, where this run keeps its own checkpoints: copy it '
                            'elsewhere, or choose another OUTPUT_DIR')
        teachers[path] = saved
    return teachers


def add_unlabelled(split: Split, teachers: dict[str, dict], num_workers: int | str, use_gpu: bool | str) -> None:
    """Add the images of DATA_DIR/unlabelled to the training set, each with the class that the networks of TEACHER,
    {path: content of its checkpoint}, give it.
    """
    folder = split.root / UNLABELLED
    if not is_folder(folder):
        return
    left_out: Counter = Counter()
    paths = list(list_images(folder, left_out))
    samples = []
    with torch.random.fork_rng():  # the initial weights are those of a run without a teacher
        teacher = Predictor(teachers, use_gpu=use_gpu)
        found = teacher(paths, workers=worker_count(num_workers))
        for prediction in Bar(found, desc=f'labelling {folder}', total=len(paths), unit='img'):
            if prediction.error:
                left_out['not readable'] += 1
                Bar.write(f'left out: {prediction.error}')
            else:
                samples.append((prediction.image, teacher.classes.index(prediction.top[0][0])))
    split.train.add(samples)
    print(f'{folder}: {len(samples)} images, each labelled by TEACHER')
    if left_out:
        print(f'left out of {folder}: {describe_left_out(left_out)}')
