"""How long a run is, and what follows from the share of it that is over: image size and learning rate."""
import math
from dataclasses import dataclass

from common.settings import Settings

STAGES = 3        # image sizes from START_SIZE to IMG_SIZE
UNIT = 16         # of their sides, in pixels
FORWARD = 1 / 3   # of the cost of a training step
VALIDATION = 0.2  # of the time of training

Size = tuple[int, int]  # (height, width) of a batch of images, in pixels


@dataclass
class Plan:
    """The length of a run in updates, and the image sizes of its stages.

    With TIME_BUDGET the length is revised on the way: the share of the run that is over stays what it is, and grows
    from there at another pace. Updates are counted from 1 in the whole run.
    """
    updates: int                             # of the whole run
    stages: list[tuple[float, Size]]         # the share of the run at which each ends, its image size
    updates_per_epoch: int
    validate_every: int                      # epochs
    validation: float                        # cost of one, in updates with the largest images
    revised_at: int = 0                      # the update after which the length was last revised,
    revised_share: float = 0.                # and the share of the run that was over then

    def share(self, number: int) -> float:
        """The share of the run that is over after update `number`."""
        left = (number - self.revised_at) / max(1, self.updates - self.revised_at)
        return min(1., self.revised_share + (1 - self.revised_share) * left)

    def compute_share(self, number: int) -> float:
        """The share of the compute of the run that is over after update `number`: all stages have the same."""
        share, begin = self.share(number), 0.
        for index, (end, _) in enumerate(self.stages):
            if share < end:
                return (index + (share - begin) / (end - begin)) / len(self.stages)
            begin = end
        return 1.

    def image_size(self, number: int) -> Size:
        """That of update `number`."""
        begin = self.share(number - 1)
        return next((size for end, size in self.stages if begin < end - 1e-9), self.stages[-1][1])

    @property
    def epochs(self) -> int:
        """The last of them may be a part of one."""
        return math.ceil(self.updates / self.updates_per_epoch)

    def updates_in(self, epoch: int) -> int:
        """The number of updates in an epoch, counted from 0."""
        return min(self.updates_per_epoch, self.updates - epoch * self.updates_per_epoch)

    def validates(self, epoch: int) -> bool:
        """Whether the epoch, counted from 0, is one of those that are validated: every so many, and the last."""
        return (epoch + 1) % self.validate_every == 0 or epoch + 1 >= self.epochs

    def to_come(self, number: int) -> list[tuple[Size, float]]:
        """The image sizes of what follows update `number`, each with its share of those updates; they add up to 1."""
        start, sizes = self.share(number), []
        for end, size in self.stages:
            if end > start:
                sizes.append((size, (end - start) / (1 - self.share(number))))
                start = end
        return sizes

    def revise(self, number: int, updates_left: int) -> None:
        """Let the run end so many updates after update `number`."""
        self.revised_share, self.revised_at = self.share(number), number
        self.updates = number + max(1, updates_left)


def make_plan(cfg: Settings, train_batches: int, val_batches: float) -> Plan:
    """The plan that EPOCHS asks for."""
    updates = math.ceil(train_batches / cfg.ACCUMULATE_STEPS)  # in an epoch
    stages = make_stages(cfg.IMG_SIZE, cfg.START_SIZE)
    validation = FORWARD * (1 + cfg.USE_EMA) * val_batches / cfg.ACCUMULATE_STEPS
    plan = Plan(cfg.EPOCHS * updates, stages, updates, 1, validation)
    if cfg.VALIDATE_EVERY == 'auto':
        epoch = updates * sum(share * math.prod(size) / math.prod(cfg.IMG_SIZE) for size, share in plan.to_come(0))
        plan.validate_every = max(1, math.ceil(validation / (VALIDATION * epoch)))
    else:
        plan.validate_every = cfg.VALIDATE_EVERY
    return plan


def make_stages(img_size: Size, start: float) -> list[tuple[float, Size]]:
    """The stages from the share `start` of img_size to all of it, each with about the same compute."""
    sizes = []
    for stage in range(STAGES):
        scale = start + (1 - start) * stage / (STAGES - 1)
        size = tuple(min(side, max(UNIT, round(scale * side / UNIT) * UNIT)) for side in img_size)
        if size not in sizes:
            sizes.append(size)
    images = [1 / math.prod(size) for size in sizes]
    ends = [sum(images[:stage + 1]) / sum(images) for stage in range(len(sizes))]
    return list(zip(ends, sizes, strict=True))
