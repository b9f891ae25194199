"""Where the initial weights of a run come from: found and read before anything long begins."""
from dataclasses import dataclass, field

from common.runtime.errors import UserError
from common.settings import Settings
from models import PUBLISHED, WeightsError, default_cfg, fetch_weights, normalisation_of, read_file


@dataclass(frozen=True)
class Provenance:
    """What result.json and the checkpoints say of the initial weights."""
    source: str                      # 'scratch', a tag of the model hub or the path of a file
    reason: str | None = None        # why none were loaded, if some were wanted
    mean: list[float] | None = None  # the normalisation that belongs to them, of three channels in [0, 1]
    std: list[float] | None = None
    loaded: int = 0                  # tensors
    resized: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    @property
    def from_scratch(self) -> bool:
        return self.source == 'scratch'

    @property
    def normalisation(self) -> tuple[list[float], list[float]] | None:
        return None if self.mean is None else (self.mean, self.std)


def find_weights(cfg: Settings) -> tuple[Provenance, dict | None]:
    """What PRETRAINED asks for: its provenance, and what the file holds, None from scratch. Raises UserError."""
    wanted = cfg.PRETRAINED
    if wanted is False:
        return Provenance('scratch'), None
    try:
        if wanted in (True, 'auto'):
            source, content = fetch_weights(cfg.MODEL, (224, 224) if cfg.IMG_SIZE == 'auto' else cfg.IMG_SIZE)
            if cfg.MODEL in PUBLISHED:
                source += f' (published for {" and ".join(map(str, PUBLISHED[cfg.MODEL]))} pixels)'
        else:
            source, content = wanted, read_file(wanted)
            if not isinstance(content, dict):
                raise WeightsError(f'{wanted}: there is no state dict in it')
    except WeightsError as error:
        if wanted != 'auto':
            raise UserError(f'PRETRAINED = {wanted!r}: {error}') from error
        print(f'!!! NO PRETRAINED WEIGHTS: training from scratch takes far more pictures and epochs !!!\n{error}')
        return Provenance('scratch', reason=str(error)), None
    published = default_cfg(cfg.MODEL)
    mean, std = normalisation_of(content) or (published['mean'], published['std'])
    return Provenance(source, mean=list(mean), std=list(std)), content
