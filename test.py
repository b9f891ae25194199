"""Step 4: name the class of every picture in a folder, with the weights that train.py kept.

    python test.py                                              data/test or else data/val, with the best weights
    python test.py --test-dir photos --checkpoint best.pth      any folder, flat or nested, or a single picture
    python test.py --explain                                    also draws where the network looked

needs the checkpoint and nothing else: classes, image size and normalisation come out of it. Writes predictions.csv,
predictions.json, the contact sheet predictions.png and the page report.html to OUTPUT_DIR; where the sub-folders of
TEST_DIR are named like classes, also ACC1, ACC5 and a report per class.
"""
import os
from pathlib import Path

import torch

from common import settings
from common.data.folders import list_images
from common.data.images import BadImage
from common.data.stores import Shards, Store, open_store
from common.evaluation.explainer import explanations
from common.evaluation.metrics import scores
from common.evaluation.predictor import Prediction, predict
from common.evaluation.report import build_report
from common.reporting.page import making
from common.reporting.plots import contact_sheet, plot_confusion, plot_reliability
from common.reporting.prediction_page import draw_explanations, write_prediction_page
from common.reporting.tables import headline, write_report, write_suspects
from common.runtime.console import printable
from common.runtime.distributed import on_first, process_group
from common.runtime.errors import UserError, explain_failures, warn_instead
from common.runtime.files import writable_folder, write_csv, write_json
from common.runtime.machine import retain_freed_memory, worker_count
from common.runtime.ranks import RANK
from common.settings import Settings
from common.training import checkpoint
from models import VARIANTS, WeightsError, check_saved

CHECKPOINT = 'checkpoints/volo_d1/best.pth'  # what train.py wrote
TEST_DIR: str | None = None       # a folder of pictures, flat or nested, or one picture; None: data/test, where
                                  # makedata.py made one, or else data/val
OUTPUT_DIR = 'predictions'        # where the tables and the contact sheet go
BATCH_SIZE = 32                   # pictures at a time; the predictions do not depend on it
NUM_WORKERS: int | str = 'auto'   # worker processes that read pictures; 'auto' takes one for each core
USE_AMP: bool | str = 'auto'      # mixed precision, where the processor gains from it; 'auto': if training had it
USE_DP = True                     # DataParallel, when there are several GPUs
UNKNOWN_BELOW = 0.0               # least certainty, from 0 to 1; below it the answer is 'unknown'. report.html of the
                                  # training shows what accuracy that buys; 0.5 is a good start
EXPLAIN = False                   # VOLO only: draw where it looked, as explain/….png beside the tables and in the page
_SHEET = 36                       # pictures on the contact sheet
_UNKNOWN = 'unknown'


def main(cfg: Settings) -> None:
    if cfg.TEST_DIR is None:
        cfg = Settings(**{**vars(cfg), 'TEST_DIR': 'data/test' if Path('data/test').is_dir() else 'data/val'})
    if cfg.BATCH_SIZE < 1:
        raise UserError(f'BATCH_SIZE = {cfg.BATCH_SIZE} must be at least 1')
    if not 0 <= cfg.UNKNOWN_BELOW <= 1:
        raise UserError(f'UNKNOWN_BELOW = {cfg.UNKNOWN_BELOW} must be between 0 and 1')
    if cfg.USE_AMP not in (True, False, 'auto'):
        raise UserError(f"USE_AMP = {cfg.USE_AMP!r}: choose True, False or 'auto'")
    retain_freed_memory()
    saved = checkpoint.load(cfg.CHECKPOINT)
    try:
        check_saved(saved)
    except WeightsError as error:
        raise UserError(f'{cfg.CHECKPOINT}: {error}') from None
    if cfg.EXPLAIN and saved['model'] not in VARIANTS:
        raise UserError(f'EXPLAIN: {saved["model"]} is no VOLO, set it to False')
    store = open_store(cfg.TEST_DIR)
    paths = find_pictures(cfg.TEST_DIR, store)
    with process_group(), explain_failures('lower BATCH_SIZE', 'nothing was written'):
        out = on_first(writable_folder, cfg.OUTPUT_DIR, 'OUTPUT_DIR')
        predictions = predict(saved, cfg.CHECKPOINT, paths, cfg.BATCH_SIZE, worker_count(cfg.NUM_WORKERS), cfg.USE_AMP,
                              cfg.USE_DP, store)
    if RANK == 0:
        write_results(cfg, out, saved, store, paths, predictions)


def write_results(cfg: Settings, out: Path, saved: dict, store: Store, paths: list[Path],
                  predictions: list[Prediction]) -> None:
    classes = saved['classes']
    rows = [describe_prediction(p, cfg, classes) for p in predictions]
    again = (out / 'predictions.json').exists()  # then the reports in that folder are of an earlier run
    write_tables(out, rows)
    for row in rows:
        result = row['error'] or f'{row["class"]} ({row["confidence"]:.1%})'
        print(f'{printable(row["path"])} → {printable(result)}')
    truth = true_classes(paths, cfg.TEST_DIR, classes)
    draw_sheet(out, store, predictions, rows, truth, classes)
    for name in ('report.txt', 'report.json', 'report.html', 'confusion.png', 'calibration.png', 'suspects.csv'):
        if again and (out / name).is_file():
            (out / name).unlink()
    report = report_accuracy(cfg, out, predictions, truth, classes)
    with warn_instead(), making(out / 'report.html'):
        draw_page(cfg, out, saved, store, paths, rows, report)
    if report and chose_weights(cfg.TEST_DIR, saved):
        print('These pictures chose the weights, and perhaps your settings, so that on others the accuracy will be a '
              'little lower: makedata.py --test-ratio 0.15 keeps a part for this.')
    failed, unknown = sum(bool(row['error']) for row in rows), sum(row['class'] == _UNKNOWN for row in rows)
    print(f'\n{len(rows) - failed - unknown} pictures named, {f"{unknown} {_UNKNOWN}, " if cfg.UNKNOWN_BELOW else ""}'
          f'{failed} unreadable; see {out}/predictions.csv, .json and .png')


def find_pictures(test_dir: str, store: Store) -> list[Path]:
    path = Path(test_dir)
    if isinstance(store, Shards):
        return [Path(name) for name, _ in store.all]
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f'TEST_DIR = {test_dir!r}: no such file or folder')
    paths = [Path(name) for name in list_images(path)]
    if not paths:
        raise UserError(f'TEST_DIR = {test_dir!r}: no pictures in it')
    return paths


def chose_weights(test_dir: str, saved: dict) -> bool:
    """Whether a folder is the validation set by which a checkpoint's weights were kept."""
    settings_of_run = saved.get('settings')
    data_dir = settings_of_run.get('DATA_DIR') if isinstance(settings_of_run, dict) else None
    return isinstance(data_dir, str) and os.path.abspath(test_dir) == os.path.abspath(Path(data_dir, 'val'))


def describe_prediction(prediction: Prediction, cfg: Settings, classes: list[str]) -> dict:
    """A row for the tables: path below TEST_DIR, class or 'unknown', confidence, certainty, the five most probable
    classes, error.
    """
    path = relative(prediction.path, cfg)
    if prediction.error:
        return {'path': path, 'class': '', 'confidence': None, 'certainty': None, 'top5': [],
                'error': prediction.error}
    shares, indices = prediction.logits.softmax(0).topk(min(5, len(classes)))
    top = [{'class': classes[i], 'confidence': round(share, 6)}
           for share, i in zip(shares.tolist(), indices.tolist(), strict=True)]
    certain = prediction.certainty
    return {'path': path, **top[0], **({'class': _UNKNOWN} if certain < cfg.UNKNOWN_BELOW else {}),
            'certainty': round(certain, 6), 'top5': top, 'error': ''}


def relative(path: Path, cfg: Settings) -> str:
    """The path below TEST_DIR."""
    return path.name if Path(cfg.TEST_DIR).is_file() else path.relative_to(cfg.TEST_DIR).as_posix()


def write_tables(out: Path, rows: list[dict]) -> None:
    write_json(out / 'predictions.json', rows)
    write_csv(out / 'predictions.csv', [
        {**row, 'top5': '; '.join(f'{top["class"]} {top["confidence"]:.4f}' for top in row['top5'])} for row in rows])


def true_classes(paths: list[Path], test_dir: str, classes: list[str]) -> dict[Path, int]:
    """{path: class index} for the pictures in sub-folders named like classes, {} where there are none."""
    if Path(test_dir).is_file():
        return {}
    folders = {path: path.relative_to(test_dir).parts[0] for path in paths if path.parent != Path(test_dir)}
    truth = {path: classes.index(name) for path, name in folders.items() if name in classes}
    unknown = sorted({name for path, name in folders.items() if name not in classes})
    if truth and unknown:
        print(f'not counted in the accuracy, since the network knows no such class: {", ".join(unknown)}')
    return truth


def draw_sheet(out: Path, store: Store, predictions: list[Prediction], rows: list[dict], truth: dict,
               classes: list[str]) -> None:
    """Up to _SHEET of the pictures, evenly over the list; green is right, red is wrong, black has no known truth."""
    pairs = list(zip(predictions, rows, strict=True))
    count = min(_SHEET, len(pairs))
    cells = [sheet_cell(store, *pairs[i * len(pairs) // count], truth, classes) for i in range(count)]
    with warn_instead():
        contact_sheet(out / 'predictions.png', cells, f'{len(cells)} of {len(rows)} predictions')


def sheet_cell(store: Store, prediction: Prediction, row: dict, truth: dict, classes: list[str]) -> tuple:
    """(image or None, text, colour) of a prediction."""
    if prediction.error:
        return None, f'{row["path"][-24:]}\nunreadable', 'black'
    text, colour = f'{row["class"]} {row["confidence"]:.0%}', 'black'
    if prediction.path in truth:
        expected = classes[truth[prediction.path]]
        colour = 'green' if row['class'] == expected else 'red'
        text += '' if row['class'] == expected else f'\nis {expected}'
    try:
        image = store.open(prediction.path, at_least=256)
    except BadImage as error:  # it was readable a moment ago
        return None, str(error)[-24:], 'black'
    image.thumbnail((256, 256))
    return image, text, colour


def report_accuracy(cfg: Settings, out: Path, predictions: list[Prediction], truth: dict,
                    classes: list[str]) -> dict | None:
    """What common/evaluation/report.py says of the pictures of known class, also in files; None where there are none.
    """
    known = [p for p in predictions if p.path in truth and not p.error]
    if not known:
        return None
    logits, targets = torch.stack([p.logits for p in known]), torch.tensor([truth[p.path] for p in known])
    certain, files = torch.tensor([p.certainty for p in known]), [relative(p.path, cfg) for p in known]
    result = scores(logits, targets, classes)
    report = build_report(result, logits, targets, certain, files, classes)
    write_report(out, result, report)
    with warn_instead():
        plot_confusion(out / 'confusion.png', result, classes)
    with warn_instead():
        plot_reliability(out / 'calibration.png', result)
    with warn_instead():
        write_suspects(out / 'suspects.csv', report['suspects'])
    print(f'\n{headline(result)}, on {len(known)} pictures\n\n{result["report_text"]}')
    answered = certain >= cfg.UNKNOWN_BELOW
    if cfg.UNKNOWN_BELOW and answered.any():
        right = (logits.argmax(1) == targets)[answered].double().mean()
        print(f'{answered.double().mean():.1%} of them are answered with a class, of those {right:.1%} rightly')
    return report


def draw_page(cfg: Settings, out: Path, saved: dict, store: Store, paths: list[Path], rows: list[dict],
              report: dict | None) -> None:
    """report.html, with EXPLAIN also explain/….png."""
    places, explained = {row['path']: path for row, path in zip(rows, paths, strict=True)}, {}
    if cfg.EXPLAIN:
        names = {places[row['path']]: row['path'] for row in rows if not row['error']}
        found = explanations(saved, list(names), cfg.BATCH_SIZE, store)
        explained = draw_explanations(out / 'explain', found, names)
    write_prediction_page(
        out / 'report.html', f'Predictions for {cfg.TEST_DIR}', f'{len(rows)} pictures, by {cfg.CHECKPOINT}', rows,
        report, lambda name: store.open(places[name], at_least=256), explained)


if __name__ == '__main__':
    settings.run(main)
