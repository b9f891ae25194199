"""Settings that are 'auto': what they become, and why."""
from common.settings import Settings
from common.training.provenance import Provenance


def choose_settings(cfg: Settings, provenance: Provenance) -> Settings:
    """The settings with LR and START_SIZE as numbers; each choice is printed with its reason."""
    chosen, scratch = {}, provenance.from_scratch
    why = 'from scratch' if scratch else 'on loaded weights'
    if cfg.LR == 'auto':
        chosen['LR'] = 2e-4 if scratch else 1e-4
    if cfg.START_SIZE == 'auto':
        chosen['START_SIZE'] = 0.5 if scratch else 1.
    for name, value in chosen.items():
        print(f"{name} = 'auto': {value:g}, {why}")
    return Settings(**{**vars(cfg), **chosen})
