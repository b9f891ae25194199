"""What updates and validations take on this machine, and so what is left of a run."""
import math
import time

from common.training.plan import Plan, Size

MEMORY = 0.98  # weight of all earlier updates beside the newest: other programs may come and go


class Clock:
    """Measures; `elapsed` is the time of the run so far in seconds, before an interruption too."""

    def __init__(self, elapsed: float = 0.):
        self.started = time.perf_counter() - elapsed
        self.measured: dict[Size, tuple[float, float, int]] = {}  # weighted seconds, weights, number of updates
        self.validation: tuple[Size, float] | None = None  # the last one: size of its images, seconds

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    @property
    def ready(self) -> bool:
        """Whether an update has been measured: the second of some size."""
        return any(weight for _, weight, _ in self.measured.values())

    def add_validation(self, size: Size, seconds: float) -> None:
        """Note what a validation with images of that size took."""
        self.validation = size, seconds

    def restart(self) -> None:
        """Forget the updates so far: those of the head alone do not tell how long the others take."""
        self.measured.clear()

    def add(self, size: Size, seconds: float) -> None:
        """Note what an update with images of that size took."""
        total, weight, count = self.measured.get(size, (0., 0., 0))
        if count:  # the first one starts workers and chooses kernels
            total, weight = MEMORY * total + seconds, MEMORY * weight + 1
        self.measured[size] = total, weight, count + 1

    def count(self, size: Size) -> int:
        """The number of updates with images of that size so far."""
        return self.measured[size][2] if size in self.measured else 0

    def update_seconds(self, size: Size) -> float:
        """What an update takes with images of that size, by the nearest size that was measured; the clock is ready."""
        known = {other: total / weight for other, (total, weight, _) in self.measured.items() if weight}
        nearest = min(known, key=lambda other: abs(math.log(math.prod(other) / math.prod(size))))
        return known[nearest] * math.prod(size) / math.prod(nearest)

    def pace(self, plan: Plan, number: int) -> tuple[float, float]:
        """(seconds of an update on average after update `number`, with its share of the validations; of a validation),
        when the clock is ready.
        """
        largest = plan.stages[-1][1]
        validation = plan.validation * self.update_seconds(largest)
        if self.validation:
            size, seconds = self.validation  # with tables and pictures, which take the same with images of any size
            validation += seconds - plan.validation * self.update_seconds(size)
        update = sum(share * self.update_seconds(size) for size, share in plan.to_come(number))
        return update + validation / (plan.validate_every * plan.updates_per_epoch), validation

    def seconds_left(self, plan: Plan, number: int) -> float | None:
        """Until the end of a run, after update `number`; None while nothing is known."""
        if number >= plan.updates:
            return 0.
        if not self.ready:
            return None
        update, validation = self.pace(plan, number)
        last = plan.updates % (plan.validate_every * plan.updates_per_epoch) > 0  # one more, at the end
        return update * (plan.updates - number) + last * validation

    def updates_in(self, seconds: float, plan: Plan, number: int) -> int:
        """The number of updates after update `number` that the seconds are enough for, with a validation at the end."""
        update, validation = self.pace(plan, number)
        return math.floor((seconds - validation) / update)
