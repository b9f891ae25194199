"""Step 4: name the class of every picture in a folder, with the weights that train.py kept.

    python test.py                                              data/test or else data/val, with the best weights
    python test.py --test-dir photos --checkpoint best.pth      any folder, flat or nested, or a single picture
    python test.py --test-dir inbox --sort-to sorted --watch    a folder that fills up: copies in a folder per class
    python test.py --test-dir - --print jsonl <files.txt >rows  a list of files, a JSON object a line for a program
    python test.py --explain                                    also draws where the network looked

needs the checkpoint and nothing else: classes, image size and normalisation come out of it. Writes predictions.csv and
predictions.jsonl, which grow as it works, the contact sheet predictions.png and the page report.html to OUTPUT_DIR;
where the sub-folders of TEST_DIR are named like classes, also ACC1, ACC5 and a report per class. The exit code is 0
where all pictures could be read, 3 where some could not, 2 for a mistake in the settings.
"""
import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import settings
from common.data.folders import Files
from common.data.images import BadImage
from common.data.reading import LIST, Source, open_source
from common.evaluation.predictor import UNKNOWN, Prediction, Predictor
from common.evaluation.report import Summary
from common.reporting.page import making, write_prediction_page
from common.reporting.plots import contact_sheet, plot_confusion, plot_reliability
from common.reporting.tables import Tables, describe, headline, write_report, write_suspects
from common.runtime.console import Bar, PrintableStream, printable
from common.runtime.device import choose_device, describe_device, use_free_cores
from common.runtime.errors import UserError, explain_failures, extra, warn_instead
from common.runtime.files import beside, locked, writable_folder, writing
from common.runtime.machine import retain_freed_memory, worker_count
from common.runtime.processes import LAUNCHED, RANK, StopRequest, on_first, process_group
from common.settings import Settings
from models import VARIANTS

CHECKPOINT: str | tuple = 'checkpoints/volo_d1/best.pth'  # what train.py wrote; of several, 'a.pth,b.pth', the mean
                                  # of their logits counts
AVERAGE_WEIGHTS = False           # several checkpoints of one run: a network with the mean of their weights instead
TEST_DIR: str | None = None       # a folder of pictures, flat or nested, or one picture, or '-' for a list of files on
                                  # standard input; None: data/test, where makedata.py made one, or else data/val
OUTPUT_DIR = 'predictions'        # where the tables and the contact sheet go
BATCH_SIZE = 32                   # pictures at a time; the predictions do not depend on it
NUM_WORKERS: int | str = 'auto'   # worker processes that read pictures; 'auto' takes one for each core
USE_GPU: bool | str = 'auto'      # 'auto': NVIDIA's or AMD's, where there is one; True: Apple's and others too, which
                                  # nobody has tried (docs/speed.md); False: none
USE_AMP: bool | str = 'auto'      # mixed precision, where the processor gains from it; 'auto': if training had it
USE_DP = True                     # DataParallel, when there are several GPUs
TTA = False                       # test-time augmentation: pictures are also looked at mirrored and turned, as training
                                  # did, and the mean of the logits counts
TTA_BELOW = 0.9                   # only pictures named with less confidence than this
UNKNOWN_BELOW = 0.0               # least certainty, from 0 to 1; below it the answer is 'unknown'. report.html of the
                                  # training shows what accuracy that buys; 0.5 is a good start
SORT_TO: str | None = None        # a folder: each picture is copied into its sub-folder CLASS, unsure or unknown
UNSURE_BELOW = 0.5                # least confidence, from 0 to 1, to be sorted by class
WATCH = False                     # name what comes into TEST_DIR until Ctrl-C; started again, it goes on
PRINT: str | None = 'text'        # a line for each picture: 'text', 'jsonl' (then nothing else is on standard output,
                                  # for a program to read) or None
EXPLAIN = False                   # VOLO only: draw where it looked, as explain/….png beside the tables and in the page
_CHOICES = {'USE_GPU': (True, False, 'auto'), 'USE_AMP': (True, False, 'auto'), 'PRINT': ('text', 'jsonl', None)}
_SHEET = 36                       # pictures on the contact sheet
_SOME_UNREADABLE = 3              # exit code
_PAUSE = 1.                       # seconds between two looks at a folder that is watched


def main(cfg: Settings) -> None:
    cfg = with_defaults(cfg)
    retain_freed_memory()
    unreadable = watch(cfg) if cfg.WATCH else name_all(cfg)
    if unreadable and not LAUNCHED:  # torchrun takes any code but 0 for a crash
        sys.exit(_SOME_UNREADABLE)


def with_defaults(cfg: Settings) -> Settings:
    """The settings with TEST_DIR, and CHECKPOINT as a tuple of paths. Raises UserError for those that do not fit."""
    settings.check_ranges(cfg, {'BATCH_SIZE': (1, float('inf')), 'UNKNOWN_BELOW': (0, 1), 'UNSURE_BELOW': (0, 1),
                                'TTA_BELOW': (0, 1)})
    for name, allowed in _CHOICES.items():
        if getattr(cfg, name) not in allowed:
            raise UserError(f'{name} = {getattr(cfg, name)!r}: choose {", ".join(map(repr, allowed))}')
    test_dir = cfg.TEST_DIR or ('data/test' if Path('data/test').is_dir() else 'data/val')
    if cfg.WATCH and (LAUNCHED or not Path(test_dir).is_dir()):
        raise UserError('WATCH: one process, without torchrun, watches a folder' if LAUNCHED else
                        f'WATCH: TEST_DIR = {test_dir!r} is no folder')
    if cfg.WATCH and cfg.EXPLAIN:
        raise UserError('EXPLAIN does not go with WATCH: set one of them to False')
    if cfg.WATCH and Path(cfg.OUTPUT_DIR).resolve().is_relative_to(Path(test_dir).resolve()):
        raise UserError(f'OUTPUT_DIR = {cfg.OUTPUT_DIR!r} lies in TEST_DIR: choose a folder outside')
    several = isinstance(cfg.CHECKPOINT, str) and not Path(cfg.CHECKPOINT).exists()
    checkpoint = cfg.CHECKPOINT.split(',') if several else cfg.CHECKPOINT
    return Settings(**{**vars(cfg), 'TEST_DIR': test_dir,
                       'CHECKPOINT': (checkpoint,) if isinstance(checkpoint, str) else tuple(checkpoint)})


def build_predictor(cfg: Settings) -> Predictor:
    use_free_cores(choose_device(cfg.USE_GPU))
    predictor = Predictor(cfg.CHECKPOINT, batch_size=cfg.BATCH_SIZE, unknown_below=cfg.UNKNOWN_BELOW, tta=cfg.TTA,
                          tta_below=cfg.TTA_BELOW, average_weights=cfg.AVERAGE_WEIGHTS, use_amp=cfg.USE_AMP,
                          use_gpu=cfg.USE_GPU, use_dp=cfg.USE_DP)
    print(describe_device(predictor.device, predictor.amp_dtype))
    if cfg.TTA:
        print(f'test-time augmentation: {len(predictor.views)} more views of pictures below {cfg.TTA_BELOW:.0%}, as '
              'training had them')
    first = predictor.members[0].saved
    if cfg.EXPLAIN and first['model'] not in VARIANTS:
        raise UserError(f'EXPLAIN: {first["model"]} is no VOLO, set it to False')
    return predictor


def build_sorter(cfg: Settings, classes: list[str]) -> contextlib.AbstractContextManager:
    if cfg.SORT_TO is None or RANK:
        return contextlib.nullcontext()
    with extra('SORT_TO'):
        from extras.inbox.sorting import Sorter
    return Sorter(cfg.SORT_TO, cfg.TEST_DIR, classes, cfg.UNSURE_BELOW, cfg.UNKNOWN_BELOW)


def name_all(cfg: Settings) -> int:
    """Name every picture there is. Returns how many could not be read."""
    advice = 'the tables have the pictures that were named before'
    with process_group(cfg.USE_GPU), explain_failures('lower BATCH_SIZE', advice):
        source = open_source(cfg.TEST_DIR)
        if cfg.SORT_TO and source.is_shards:
            raise UserError('SORT_TO needs files, and these pictures lie in shards')
        out = on_first(writable_folder, cfg.OUTPUT_DIR, 'OUTPUT_DIR')
        predictor, tables = build_predictor(cfg), Tables(out)
        summary = Summary(predictor.classes, _SHEET, cfg.EXPLAIN)
        workers = worker_count(cfg.NUM_WORKERS)
        workers = min(workers, source.count or workers)
        found = iter(Bar(predictor(source, source.store, workers), desc='predicting', unit='img', total=source.count))
        groups = iter(lambda: list(itertools.islice(found, cfg.BATCH_SIZE)), [])
        first = next(groups, None)
        if first is None:
            raise UserError('TEST_DIR: no files are listed on standard input')
        with build_sorter(cfg, predictor.classes) as sorter:
            if RANK == 0:
                remove_old(out, tables)
            for group in itertools.chain([first], groups):
                if RANK == 0:
                    stamped = [(prediction, source.store.stamp(prediction.picture)) for prediction in group]
                    for prediction, row in zip(group, record(cfg, source, stamped, tables, sorter), strict=True):
                        summary.add(prediction, row)
    if RANK == 0:
        write_results(cfg, out, predictor, source, summary)
    return summary.unreadable


def watch(cfg: Settings) -> int:
    """Name what comes into TEST_DIR until a signal ends it. Returns how many pictures could not be read."""
    with extra('WATCH'):
        from extras.inbox.arrivals import Arrivals
    source, out = Source(str(Path(cfg.TEST_DIR)), Files, None), writable_folder(cfg.OUTPUT_DIR, 'OUTPUT_DIR')
    tables, named, unreadable = Tables(out), 0, 0
    busy = f'OUTPUT_DIR = {cfg.OUTPUT_DIR!r}: another run watches with it, choose another folder'
    with explain_failures('lower BATCH_SIZE', 'started again it goes on'), locked(beside(out.resolve(), 'lock'), busy):
        predictor, workers = build_predictor(cfg), worker_count(cfg.NUM_WORKERS)
        arrivals = Arrivals(cfg.TEST_DIR, {source.path(row['path']): (row['bytes'], row['modified_ns'])
                                           for row in tables.reopen()})
        print(f'watching {cfg.TEST_DIR}, of which {len(arrivals.done)} pictures were named before; Ctrl-C ends it')
        with build_sorter(cfg, predictor.classes) as sorter, StopRequest('leaving after this batch') as stop:
            while not stop.signum:
                ready = arrivals.ready()
                found = predictor(ready, workers=workers if len(ready) > cfg.BATCH_SIZE else 0)
                while not stop.signum and (group := list(itertools.islice(found, cfg.BATCH_SIZE))):
                    stamped = [(prediction, arrivals.take(prediction.picture, not prediction.error))
                               for prediction in group]
                    rows = record(cfg, source, [pair for pair in stamped if pair[1]], tables, sorter)
                    named, unreadable = named + len(rows), unreadable + sum(bool(row['error']) for row in rows)
                time.sleep(_PAUSE)
    print(f'{named - unreadable} pictures named, {unreadable} unreadable; see {out}/predictions.csv and .jsonl')
    return unreadable


def record(cfg: Settings, source: Source, found: list[tuple[Prediction, Sequence[int]]], tables: Tables,
           sorter: Any) -> list[dict]:
    """Copy, write down and print what was found: predictions, each with the stamp of its file. Returns their rows.

    A run that is killed in between and started again finds its copies, and no row of them.
    """
    rows = [describe(prediction, source.name(str(prediction.picture)), stamp) for prediction, stamp in found]
    for (prediction, _), row in zip(found, rows, strict=True):
        if sorter and not prediction.error:
            sorter.copy(prediction, Path(row['path']).name if source.root == LIST else row['path'])
    if rows:
        tables.append(rows)
    for row in rows:
        if cfg.PRINT == 'jsonl':
            print(json.dumps(row), file=PrintableStream(sys.__stdout__), flush=True)
        elif cfg.PRINT == 'text':
            result = row['error'] or f'{row["class"]} ({row["confidence"]:.1%})'
            Bar.write(f'{printable(row["path"])} → {printable(result)}')
    return rows


def remove_old(out: Path, tables: Tables) -> None:
    """Delete the tables of an earlier run, and then its reports, which this one may not have."""
    if tables.lines.exists():
        for name in ('report.txt', 'report.json', 'report.html', 'confusion.png', 'calibration.png', 'suspects.csv'):
            with writing(out / name):
                (out / name).unlink(missing_ok=True)
    tables.clear()


def write_results(cfg: Settings, out: Path, predictor: Predictor, source: Source, summary: Summary) -> None:
    """The contact sheet, scores where classes are known, and the page."""
    cells = [sheet_cell(source, row, summary.true_class(row['path'])) for row in summary.sample.items()]
    with warn_instead():
        contact_sheet(out / 'predictions.png', cells, f'{len(cells)} of {summary.count} predictions')
    report = report_accuracy(cfg, out, summary) if summary.names else None
    with warn_instead(), making(out / 'report.html'):
        draw_page(cfg, out, predictor, source, summary, report)
    if report and chose_weights(cfg.TEST_DIR, predictor.members[0].saved):
        print('These pictures chose the weights, and perhaps your settings, so that on others the accuracy will be a '
              'little lower: makedata.py --test-ratio 0.15 keeps a part for this.')
    named = summary.count - summary.unreadable - summary.unknown
    print(f'\n{named} pictures named, {f"{summary.unknown} {UNKNOWN}, " if cfg.UNKNOWN_BELOW else ""}'
          f'{summary.unreadable} unreadable; see {out}/predictions.csv, .jsonl and .png')


def chose_weights(test_dir: str, saved: dict) -> bool:
    """Whether a folder is the validation set by which a checkpoint's weights were kept."""
    settings_of_run = saved.get('settings')
    data_dir = settings_of_run.get('DATA_DIR') if isinstance(settings_of_run, dict) else None
    return isinstance(data_dir, str) and os.path.abspath(test_dir) == os.path.abspath(Path(data_dir, 'val'))


def sheet_cell(source: Source, row: dict, truth: str | None) -> tuple:
    """(image or None, text, colour) of a prediction; green is right, red is wrong, black has no known truth."""
    if row['error']:
        return None, f'{row["path"][-24:]}\nunreadable', 'black'
    text, colour = f'{row["class"]} {row["confidence"]:.0%}', 'black'
    if truth is not None:
        colour = 'green' if row['class'] == truth else 'red'
        text += '' if row['class'] == truth else f'\nis {truth}'
    try:
        image = source.store.open(source.path(row['path']), at_least=256)
    except BadImage as error:  # it was readable a moment ago
        return None, str(error)[-24:], 'black'
    image.thumbnail((256, 256))
    return image, text, colour


def report_accuracy(cfg: Settings, out: Path, summary: Summary) -> dict:
    """What common/evaluation/report.py says of the pictures of known class, also in files."""
    if summary.other_folders:
        print('not counted in the accuracy, since the network knows no such class: '
              + ', '.join(sorted(summary.other_folders)))
    result, report = summary.scores()
    write_report(out, result, report)
    with warn_instead():
        plot_confusion(out / 'confusion.png', result, summary.classes)
    with warn_instead():
        plot_reliability(out / 'calibration.png', result)
    with warn_instead():
        write_suspects(out / 'suspects.csv', report['suspects'])
    print(f'\n{headline(result)}, on {len(summary.names)} pictures\n\n{result["report_text"]}')
    if cfg.UNKNOWN_BELOW and max(summary.certain) >= cfg.UNKNOWN_BELOW:
        answered, right = summary.answered(cfg.UNKNOWN_BELOW)
        print(f'{answered:.1%} of them are answered with a class, of those {right:.1%} rightly')
    return report


def draw_page(cfg: Settings, out: Path, predictor: Predictor, source: Source, summary: Summary,
              report: dict | None) -> None:
    """report.html, with EXPLAIN also explain/….png."""
    rows, explained = [row for row in summary.sample.items() if not row['error']], {}
    if cfg.EXPLAIN:
        with extra('EXPLAIN'):
            from extras.explain import draw_explanations, explanations
        names = {source.path(name): name for name in summary.readable}
        found = explanations(predictor.members[0].saved, list(names), cfg.BATCH_SIZE, source.store,
                             predictor.device)
        explained = draw_explanations(out / 'explain', found, names)
    write_prediction_page(
        out / 'report.html', f'Predictions for {cfg.TEST_DIR}',
        f'{summary.count} pictures, by {", ".join(cfg.CHECKPOINT)}', rows, report,
        lambda name: source.store.open(source.path(name), at_least=256), explained)


if __name__ == '__main__':
    settings.run(main, rows_only=lambda cfg: cfg.PRINT == 'jsonl')
