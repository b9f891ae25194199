"""What a training run leaves behind after each epoch: checkpoints, tables and pictures."""
import torch

from common.reporting import plots as report
from common.reporting.tables import write_scores
from common.runtime.device import describe_device
from common.runtime.errors import UserError
from common.runtime.files import write_csv, write_json
from common.training import checkpoint
from common.training.state import training_state


def best_of(history):
    """{epoch, weights ('raw' or 'ema'), acc1} of the highest ACC1 so far, the earliest of equals; None without one."""
    found = [{'epoch': row['epoch'], 'weights': which, 'acc1': row[f'{which}_acc1']}
             for row in history for which in ('raw', 'ema') if row[f'{which}_acc1'] is not None]
    return max(found, key=lambda best: best['acc1'], default=None)


def about(cfg, run, data, history):
    """What every checkpoint says of the run, besides its history."""
    return {'model': cfg.MODEL, 'model_kwargs': run.kwargs, 'classes': data.classes, 'transform': data.transform,
            'files': data.files, 'settings': vars(cfg), 'pretrained': run.weights, 'best': best_of(history)}


def save_last(cfg, run, data, out, history):
    """Write last.pth, all that a resumed run needs."""
    checkpoint.save_last(out, {**about(cfg, run, data, history), 'history': history, **training_state(run)})


def save_epoch(cfg, run, data, out, history, results):
    """Write checkpoints, tables and pictures after an epoch. `results`: the scores of the raw and the EMA weights."""
    best, info = best_of(history), about(cfg, run, data, history)
    if best['epoch'] == len(history):
        weights = run.ema.module if best['weights'] == 'ema' else run.net
        checkpoint.save(out / 'best.pth', {**info, 'history': history, 'state_dict': weights.state_dict()})
    save_last(cfg, run, data, out, history)  # second: best.pth must not miss an epoch
    try:
        write_csv(out / 'log.csv', history)
        write_json(out / 'result.json', {
            **info, 'last': history[-1], 'finished': len(history) == cfg.EPOCHS, 'parameters': run.parameters,
            'seconds': sum(row['seconds'] for row in history), 'device': describe_device(run.device, run.dtype),
            'torch': torch.__version__})
        report.plot_training(out, history, best)
        if best['epoch'] == len(history):
            write_scores(out, results[best['weights']], data.classes, best)
    except UserError as error:  # a table that is open in another program, say; the training is worth more
        print(f'warning: {error}')
