"""Settings that are 'auto': what they become, and why."""
from common.settings import Settings
from common.training.provenance import Provenance
from models import has_fixed_size


def choose_settings(cfg: Settings, provenance: Provenance) -> Settings:
    """The settings with LR and START_SIZE as numbers; each choice is printed with its reason."""
    scratch, chosen = provenance.from_scratch, {}
    how = 'training from scratch' if scratch else 'the weights are trained already'
    if cfg.LR == 'auto':
        chosen['LR'] = 2e-4 if scratch else 1e-4, how
    if cfg.START_SIZE == 'auto':
        chosen['START_SIZE'] = (1., f'{cfg.MODEL} takes images of one size') if has_fixed_size(cfg.MODEL) else (
            0.5 if scratch else 1., how)
    for name, (value, reason) in chosen.items():
        print(f"{name} = 'auto': {value:g}, {reason}")
    return Settings(**{**vars(cfg), **{name: value for name, (value, _) in chosen.items()}})
