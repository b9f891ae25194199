"""The log of a run, a row (a plain dict) for each epoch, and the files that are written from it after each."""
from pathlib import Path

import torch

from common.data.loaders import Data
from common.evaluation.certainty import certainty, typicality
from common.evaluation.metrics import interval
from common.evaluation.report import build_report
from common.reporting.plots import plot_confusion, plot_reliability, plot_training
from common.reporting.tables import write_report
from common.runtime.console import format_duration
from common.runtime.device import describe_device, dtype_name
from common.runtime.errors import warn_instead
from common.runtime.files import write_csv, write_json
from common.settings import Settings
from common.training.step import TrainState

COLUMNS = ('loss', 'acc1', 'acc5', 'balanced_accuracy', 'temperature')  # of the raw and of the EMA weights


def training_columns(state: TrainState) -> dict:
    """What a row says of the training in an epoch, from its progress."""
    progress = state.progress
    return {'lr': state.learning_rate, 'train_loss': progress.losses.avg,
            'train_acc1': progress.acc1.avg if progress.acc1.count else None, 'grad_norm': progress.norms.avg,
            'skipped_updates': progress.skipped, 'images_per_s': progress.images / progress.seconds,
            'waiting': progress.waited / progress.seconds,
            'pflop': progress.flop / 1e15 if state.image_flop else None}


def validation_columns(results: dict[str, dict]) -> dict:
    """What a row says of the validation: `results` has the scores of the 'raw' and, with USE_EMA, the 'ema' weights."""
    return {f'{which}_{name}': results.get(which, {}).get(name) for which in ('raw', 'ema') for name in COLUMNS}


def best_of(history: list[dict], by: str = 'acc1') -> dict | None:
    """{epoch, weights ('raw' or 'ema'), acc1, balanced_accuracy, temperature} of the validation with the largest images
    so far that has the highest `by`, which is 'acc1' or 'balanced_accuracy'; None without one.
    """
    found = [(row['height'] * row['width'], {'epoch': row['epoch'], 'weights': which, **{
                 name: row.get(f'{which}_{name}') for name in ('acc1', 'balanced_accuracy', 'temperature')}})
             for row in history for which in ('raw', 'ema') if row[f'{which}_acc1'] is not None]
    return max(found, key=lambda item: (item[0], item[1][by]), default=(0, None))[1]


def out_of_patience(cfg: Settings, history: list[dict]) -> bool:
    """Whether the last PATIENCE validations brought no better weights, with images that are as large as they get."""
    validations = [row['epoch'] for row in history if row['raw_acc1'] is not None]
    return (cfg.PATIENCE is not None and (history[-1]['height'], history[-1]['width']) == cfg.IMG_SIZE
            and len(validations) > cfg.PATIENCE
            and best_of(history, cfg.BEST_BY)['epoch'] < validations[-cfg.PATIENCE])


def describe_run(cfg: Settings, state: TrainState, data: Data, history: list[dict]) -> dict:
    """What every checkpoint says of the run, besides its history."""
    return {'model': cfg.MODEL, 'model_kwargs': state.model_kwargs, 'classes': data.classes,
            'transform': data.transform.as_dict(), 'amp_dtype': state.amp_dtype and dtype_name(state.amp_dtype),
            'fingerprint': data.fingerprint, 'settings': vars(cfg), 'provenance': vars(state.provenance),
            'best': best_of(history, cfg.BEST_BY)}


def write_epoch(cfg: Settings, state: TrainState, data: Data, out: Path, history: list[dict],
                best_scores: dict | None) -> None:
    """Tables and pictures after an epoch. `best_scores` are those of best.pth, with the 'outputs' that they are made
    from and their 'outliers', if it is of this epoch, else None.

    What cannot be written, such as a table that is open in another program, becomes a warning.
    """
    best = best_of(history, cfg.BEST_BY)
    with warn_instead():
        write_csv(out / 'log.csv', history)
    with warn_instead():
        write_json(out / 'result.json', {
            **describe_run(cfg, state, data, history), 'last': history[-1],
            'finished': len(history) >= state.plan.epochs,
            'parameters': sum(p.numel() for p in state.net.parameters()),
            'seconds': sum(row['seconds'] for row in history),
            'pflop': sum(row.get('pflop') or 0 for row in history) if state.image_flop else None,
            'device': describe_device(state.device, state.amp_dtype), 'torch': torch.__version__})
    with warn_instead():
        plot_training(out, history, best)
    if best_scores:
        with warn_instead():
            write_report(out, best_scores, {**best, **report_on_val(best_scores, data)})
        with warn_instead():
            plot_confusion(out / 'confusion.png', best_scores, data.classes)
        with warn_instead():
            plot_reliability(out / 'calibration.png', best_scores)


def report_on_val(scores: dict, data: Data) -> dict:
    """common/evaluation/report.py on the validation set, whose pictures are named as in split.csv."""
    outputs, dataset = scores['outputs'], data.val.dataset
    files = [f'val/{Path(path).relative_to(dataset.root).as_posix()}' for path, _ in dataset.samples]
    logits, known = outputs.logits / scores['temperature'], scores['outliers']
    confidence = logits.softmax(1).amax(1)
    certain = confidence if known is None else certainty(confidence, typicality(outputs.features, known, own=True))
    return build_report(scores, logits, outputs.targets, certain, files, data.classes)


def print_result(cfg: Settings, history: list[dict], count: int) -> None:
    """The best epoch, which val chose, and the last one; `count` is the number of images in val."""
    def described(acc1):
        low, high = interval(acc1, count)
        return f'ACC1 {acc1:.2f} % (95 % interval {low:.1f} to {high:.1f} %)'

    best, last = best_of(history, cfg.BEST_BY), history[-1]
    print(f'\nbest on val: epoch {best["epoch"]}, {best["weights"]} weights, {described(best["acc1"])}')
    for which in ('raw', 'ema'):
        if last[f'{which}_acc1'] is not None:
            print(f'last epoch, {which} weights, whatever val says: {described(last[f"{which}_acc1"])}')


def print_epoch(row: dict, epochs: int, seconds_left: float | None) -> None:
    text = f'epoch {row["epoch"]}/{epochs}: loss {row["train_loss"]:.3f}'
    if row['raw_acc1'] is not None:
        ema = '' if row['ema_acc1'] is None else f' (EMA {row["ema_acc1"]:.2f} %)'
        text += f', val loss {row["raw_loss"]:.3f}, ACC1 {row["raw_acc1"]:.2f} %{ema}'
    print(f'{text}, {row["images_per_s"]:.1f} img/s, waiting {row["waiting"]:.0%}, {format_duration(row["seconds"])}, '
          f'{format_duration(seconds_left)} left', flush=True)
