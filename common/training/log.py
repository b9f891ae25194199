"""The log of a run, a row (a plain dict) for each epoch, and the files that are written from it after each."""
from pathlib import Path

import torch

from common.data.datasets import ImageFolder
from common.data.loaders import Data
from common.data.split import describe_draw, read_split_settings
from common.evaluation.metrics import interval
from common.evaluation.outliers import certainty, typicality
from common.evaluation.report import build_report
from common.reporting.plots import plot_confusion, plot_reliability, plot_training
from common.reporting.tables import write_report
from common.runtime.console import format_duration
from common.runtime.device import describe_device, dtype_name
from common.runtime.errors import warn_instead
from common.runtime.files import write_csv, write_json
from common.settings import Settings
from common.training.setup import BuiltNetwork
from common.training.step import TrainState

VALIDATION_COLUMNS = ('loss', 'acc1', 'acc5', 'balanced_accuracy', 'temperature')  # of the raw and the EMA weights


def describe_run(cfg: Settings, data: Data, built: BuiltNetwork, amp_dtype: torch.dtype | None) -> dict:
    """Return what every checkpoint says of the run, besides its history and weights: plain values."""
    split = read_split_settings(Path(cfg.DATA_DIR))
    return {
        'model': cfg.MODEL,
        'model_kwargs': built.kwargs,
        'classes': data.classes,
        'transform': data.transform.as_dict(),
        'amp_dtype': dtype_name(amp_dtype) if amp_dtype else None,
        'fingerprint': data.fingerprint,
        'split': describe_draw(split),
        'source': split.get('SOURCE_DIR'),
        'settings': vars(cfg),
        'provenance': vars(built.provenance)}


def epoch_row(epoch: int, state: TrainState, results: dict[str, dict], seconds: float) -> dict:
    """Return the row of an epoch, counted from 0, which took so many seconds. `results` has the scores of the 'raw'
    and, with USE_EMA, the 'ema' weights; it is empty where the epoch was not validated.
    """
    progress = state.progress
    row = {
        'epoch': epoch + 1,
        'lr': state.learning_rate,
        'train_loss': progress.losses.avg,
        'train_acc1': progress.acc1.avg if progress.acc1.count else None,
        'grad_norm': progress.norms.avg,
        'skipped_updates': progress.skipped,
        'images_per_s': progress.images / progress.seconds,
        'waiting': progress.waited / progress.seconds,
        'pflop': progress.flop / 1e15 if state.image_flop else None}
    for which in ('raw', 'ema'):
        for name in VALIDATION_COLUMNS:
            row[f'{which}_{name}'] = results.get(which, {}).get(name)
    return {**row, 'seconds': seconds}


def best_of(history: list[dict], by: str = 'acc1') -> dict | None:
    """Return {epoch, weights ('raw' or 'ema'), acc1, balanced_accuracy, temperature} of the validation so far that has
    the highest `by`, which is 'acc1' or 'balanced_accuracy', the earliest of equals; None without one.
    """
    best = None
    for row in history:
        for which in ('raw', 'ema'):
            if row[f'{which}_acc1'] is None:
                continue
            found = {'epoch': row['epoch'], 'weights': which}
            for name in ('acc1', 'balanced_accuracy', 'temperature'):
                found[name] = row[f'{which}_{name}']
            if best is None or found[by] > best[by]:
                best = found
    return best


def out_of_patience(history: list[dict], patience: int | None, best_by: str) -> bool:
    """Return whether the last PATIENCE = `patience` validations brought no better weights."""
    validated = [row['epoch'] for row in history if row['raw_acc1'] is not None]
    if patience is None or len(validated) <= patience:
        return False
    return best_of(history, best_by)['epoch'] < validated[-patience]


def write_epoch(facts: dict, state: TrainState, data: Data, out: Path, history: list[dict],
                best_scores: dict | None) -> None:
    """Write tables and plots after an epoch. `facts` is what describe_run returned; `best_scores` are those of
    best.pth, with the 'outputs' that they are made from and their 'outliers', if it is of this epoch, else None.

    What cannot be written, such as a table that is open in another program, becomes a warning.
    """
    best = best_of(history, facts['settings']['BEST_BY'])
    with warn_instead():
        write_csv(out / 'log.csv', history)
    with warn_instead():
        write_json(out / 'result.json', {
            **facts, 'best': best, 'last': history[-1],
            'finished': len(history) >= state.plan.epochs,
            'parameters': sum(p.numel() for p in state.net.parameters()),
            'seconds': sum(row['seconds'] for row in history),
            'pflop': sum(row['pflop'] or 0 for row in history) if state.image_flop else None,
            'device': describe_device(state.device, state.amp_dtype), 'torch': torch.__version__})
    with warn_instead():
        plot_training(out, history, best)
    if best_scores is None:
        return
    with warn_instead():
        write_report(out, best_scores, {**best, **report_on_val(best_scores, data)})
    with warn_instead():
        plot_confusion(out / 'confusion.png', best_scores, data.classes)
    with warn_instead():
        plot_reliability(out / 'calibration.png', best_scores)


def report_on_val(scores: dict, data: Data) -> dict:
    """Return common/evaluation/report.py's report on the validation set."""
    outputs = scores['outputs']
    dataset = data.val.dataset
    files = [name_in_split(dataset, path) for path, _ in dataset.samples]
    logits = outputs.logits / scores['temperature']
    certain = logits.softmax(1).amax(1)
    if scores['outliers'] is not None:
        certain = certainty(certain, typicality(outputs.features, scores['outliers'], own=True))
    return build_report(scores, logits, outputs.targets, certain, files, data.classes)


def name_in_split(dataset: ImageFolder, path: str) -> str:
    """Return the path of an image of `dataset` below DATA_DIR, such as train/CLASS/NAME: what split.csv calls it.

    The first folder is not called train or val where DATA_DIR was split by others, into training and valid for example.
    """
    return f'{Path(dataset.root).name}/{Path(path).relative_to(dataset.root).as_posix()}'


def print_result(history: list[dict], best_by: str, images: int) -> None:
    """Print the best epoch, which val chose, and the last one; `images` is the number of images in val."""
    def described(acc1: float) -> str:
        low, high = interval(acc1, images)
        return f'ACC1 {acc1:.2f} % (95 % interval {low:.1f} to {high:.1f} %)'

    best = best_of(history, best_by)
    print(f'\nbest on val: epoch {best["epoch"]}, {best["weights"]} weights, {described(best["acc1"])}')
    for which in ('raw', 'ema'):
        acc1 = history[-1][f'{which}_acc1']
        if acc1 is not None:
            print(f'last epoch, {which} weights, whatever val says: {described(acc1)}')


def print_epoch(row: dict, epochs: int, seconds_left: float | None) -> None:
    """Print a line on an epoch and the time that is left."""
    text = f'epoch {row["epoch"]}/{epochs}: loss {row["train_loss"]:.3f}'
    if row['raw_acc1'] is not None:
        text += f', val loss {row["raw_loss"]:.3f}, ACC1 {row["raw_acc1"]:.2f} %'
    if row['ema_acc1'] is not None:
        text += f' (EMA {row["ema_acc1"]:.2f} %)'
    print(f'{text}, {row["images_per_s"]:.1f} img/s, waiting {row["waiting"]:.0%}, {format_duration(row["seconds"])}, '
          f'{format_duration(seconds_left)} left', flush=True)
