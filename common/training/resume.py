"""Going on from last.pth."""
from common.runtime.errors import UserError


def check_resume(cfg, data, saved, out):
    """Refuse settings that would make another run of the saved one, and list the others that changed."""
    before = saved['settings']
    for name in ('MODEL', 'MODEL_KWARGS', 'IMG_SIZE', 'USE_EMA', 'TOKEN_LABEL', 'LAYER_DECAY'):
        if before[name] != getattr(cfg, name):
            raise UserError(f'RESUME: {out}/last.pth was trained with {name} = {before[name]!r}: '
                            'set it back, or choose another OUTPUT_DIR')
    if saved['classes'] != data.classes:
        raise UserError(f'RESUME: {out}/last.pth was trained on other classes: choose another OUTPUT_DIR')
    if saved['files'] != data.files:
        raise UserError(f'RESUME: {out}/last.pth was trained on other pictures than DATA_DIR has now: put those '
                        'back, or choose another OUTPUT_DIR')
    if saved['progress']['step']:
        fit_progress(cfg, saved, out)
    if saved['transform'] != data.transform:
        were = ', '.join(f'{key.upper()} = {value}' for key, value in saved['transform'].items()
                         if value != data.transform[key])
        raise UserError(f'RESUME: {out}/last.pth was trained with {were}: set it so, or choose another OUTPUT_DIR')
    if len(saved['history']) >= cfg.EPOCHS:
        raise UserError(f'RESUME: {out}/last.pth has all its {len(saved["history"])} epochs behind it: '
                        'raise EPOCHS to train on')
    for name, value in vars(cfg).items():
        if before.get(name) != value and name != 'RESUME':
            print(f'resume: {name} was {before.get(name)!r}, now {value!r}')
    if saved['lr_scale'] < 1 and before['LR'] != cfg.LR:
        saved['lr_scale'] = 1.
    elif saved['lr_scale'] < 1:
        print(f'resume: the learning rate stays at {saved["lr_scale"]} of LR, after steps without a finite loss')
    step = saved['progress']['step']
    print(f'resume: {out}/last.pth, after epoch {len(saved["history"])}{f" and {step} steps" if step else ""}')


def fit_progress(cfg, saved, out):
    """Count an epoch that was stopped in the middle in batches of another size, if as many pictures make a step."""
    before, progress = saved['settings'], saved['progress']
    pictures = progress['step'] * before['BATCH_SIZE']
    group = before['BATCH_SIZE'] * before['ACCUMULATE_STEPS']
    if before['SEED'] != cfg.SEED or group != cfg.BATCH_SIZE * cfg.ACCUMULATE_STEPS or pictures % cfg.BATCH_SIZE:
        raise UserError(
            f'RESUME: {out}/last.pth stopped within an epoch that has BATCH_SIZE = {before["BATCH_SIZE"]}, '
            f'ACCUMULATE_STEPS = {before["ACCUMULATE_STEPS"]}, SEED = {before["SEED"]}: until that epoch is over, keep '
            'SEED and the product of the other two')
    progress['step'] = pictures // cfg.BATCH_SIZE
