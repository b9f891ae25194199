"""Step 4: classify every image of a folder with the weights that train.py kept.

    python test.py                                              data/test or else data/val, with the best weights
    python test.py --test-dir photos --checkpoint best.pth      any folder, flat or nested, or a single image
    python test.py --test-dir inbox --sort-to sorted --watch    a folder that fills up: copies in a folder per class
    python test.py --test-dir - --print jsonl <files.txt >rows  a list of files, a JSON object a line for a program
    python test.py --explain                                    also draws where the network looked
    python test.py --test-dir unlabelled --review               a page to label images, the most instructive first

needs the checkpoint and nothing else: classes, image size and normalisation come out of it. Writes predictions.csv and
predictions.jsonl, which grow as it works, the contact sheet predictions.png and the page report.html to OUTPUT_DIR;
where the sub-folders of TEST_DIR are named like classes, also ACC1, ACC5 and a report per class. The exit code is 0
where all images could be read, 3 where some could not, 2 for a mistake in the settings.
"""
import contextlib
import sys
from pathlib import Path
from typing import Any

from common import settings
from common.data.sources import Source, open_source
from common.evaluation.predictor import UNKNOWN, Predictor, paths_of, role_in_training, usual_test_dir
from common.evaluation.report import Summary, table_row
from common.reporting.page import making, write_prediction_page
from common.reporting.plots import contact_sheet, plot_confusion, plot_reliability, prediction_cell
from common.reporting.tables import Tables, headline, print_rows, write_report, write_suspects
from common.runtime.console import Bar
from common.runtime.device import choose_device, describe_device, use_free_cores
from common.runtime.errors import UserError, explain_failures, extra, warn_instead
from common.runtime.files import sole_writer, writable_folder
from common.runtime.machine import retain_freed_memory, worker_count
from common.runtime.processes import LAUNCHED, RANK, on_first, process_group
from common.settings import Settings

CHECKPOINT: str | tuple = 'checkpoints/volo_d1/best.pth'  # The checkpoint that train.py wrote, or several as
                                  # 'a.pth,b.pth', whose logits are averaged.
AVERAGE_WEIGHTS: bool = False     # With several checkpoints of one run: average their weights instead of their logits.
TEST_DIR: str | None = None       # A folder of images, flat or nested, a single image, or '-' for a list of files on
                                  # standard input. None is data/test, where makedata.py made one, or else data/val.
OUTPUT_DIR: str = 'predictions'   # The folder for the tables, the contact sheet and the page.
BATCH_SIZE: int = 32              # Images in a batch; lower it if memory runs out.
NUM_WORKERS: int | str = 'auto'   # Worker processes that read images; 'auto' is one for each core, 8 at most.
USE_GPU: bool | str = 'auto'      # 'auto' uses an NVIDIA or AMD GPU where there is one, True also one of Apple, Intel
                                  # and others, which nobody has tried (docs/speed.md), False none.
USE_AMP: bool | str = 'auto'      # Mixed precision, where the processor gains from it; 'auto' is as in training.
USE_DP: bool = True               # Share each batch among several GPUs (DataParallel).
UNKNOWN_BELOW: float = 0.0        # The least certainty, from 0 to 1, at which an image gets a class; below it the
                                  # answer is 'unknown'. Certainty is the confidence, lowered for images that are unlike
                                  # those of val. 0.5 is a good start; report.html shows what each value buys.
PRINT: str | None = 'text'        # What is printed for each image: a line of 'text', 'jsonl' (a JSON object for a
                                  # program to read, with nothing else on standard output) or None.
TTA: bool = False                 # Test-time augmentation: classify each image in several views, such as mirror images,
                                  # of the kinds that training saw, and average the logits.
TTA_BELOW: float = 0.9            # Test-time augmentation is for images with a confidence below this, from 0 to 1.
EXPLAIN: bool = False             # For a VOLO: draw where it looked, in the folder explain/ and on the page.
REVIEW: bool | int = False        # Let the page ask for labels of images without a class, the most instructive first,
                                  # or for corrections. True asks for up to 1,000 images, a number for up to so many.
SORT_TO: str | None = None        # A folder in which each image is copied into the sub-folder of its class, 'unsure' or
                                  # 'unknown'.
UNSURE_BELOW: float = 0.5         # SORT_TO copies images with a confidence (the probability of their class) below this,
                                  # from 0 to 1, into 'unsure'.
WATCH: bool = False               # Classify what comes into TEST_DIR until Ctrl-C; started again, it goes on.
_ON_SHEET = 36                    # images on the contact sheet
_SOME_UNREADABLE = 3              # exit code


def main(cfg: Settings) -> None:
    validate_settings(cfg)
    cfg = resolved(cfg)
    retain_freed_memory()
    if cfg.WATCH:
        finish(watch_folder(cfg))
        return
    with contextlib.ExitStack() as lock:  # of OUTPUT_DIR, until all is written
        with process_group(cfg.USE_GPU), explain_failures('lower BATCH_SIZE', 'what was classified is in the tables'):
            source = open_source(cfg.TEST_DIR)
            out = on_first(writable_folder, cfg.OUTPUT_DIR, 'OUTPUT_DIR')
            if RANK == 0:
                lock.enter_context(sole_writer(out, 'OUTPUT_DIR'))
            predictor = build_predictor(cfg)
            explainer = build_explainer(cfg, predictor)
            reviewer = build_reviewer(cfg, source, predictor)
            summary = classify(cfg, source, predictor, Tables(out), reviewer)
        if RANK == 0:
            draw_contact_sheet(out, source, summary)
            report = report_accuracy(out, summary, cfg.UNKNOWN_BELOW) if summary.names else None
            draw_page(cfg, out, source, summary, report, explainer, reviewer)
    if RANK == 0:
        if report:
            notes = [role_in_training(cfg.TEST_DIR, origin) for origin in predictor.origins]
            for note in filter(None, dict.fromkeys(notes)):
                print(note)
        print(f'\n{summary.classified} images classified, {summary.unknown} not recognised, {summary.unreadable} '
              f'unreadable; see {out}/report.html and predictions.csv, .jsonl and .png')
    finish(summary.unreadable)


def finish(unreadable: int) -> None:
    """Leave with an exit code of its own where images could not be read."""
    if unreadable and not LAUNCHED:  # torchrun takes any code but 0 for a crash
        sys.exit(_SOME_UNREADABLE)


def validate_settings(cfg: Settings) -> None:
    """Raise UserError for settings that do not fit, before anything is read."""
    settings.check_range('BATCH_SIZE', cfg.BATCH_SIZE, least=1)
    for name in ('UNKNOWN_BELOW', 'UNSURE_BELOW', 'TTA_BELOW'):
        settings.check_range(name, getattr(cfg, name), least=0, most=1)
    if cfg.TEST_DIR and Path(cfg.OUTPUT_DIR).resolve() == Path(cfg.TEST_DIR).resolve():
        raise UserError(f'OUTPUT_DIR = {cfg.OUTPUT_DIR!r} is also TEST_DIR, so that the next run would classify the '
                        'plots of this one: choose another folder')
    choices = {'USE_GPU': (True, False, 'auto'), 'USE_AMP': (True, False, 'auto'), 'PRINT': ('text', 'jsonl', None)}
    for name, allowed in choices.items():
        value = getattr(cfg, name)
        if value not in allowed:
            raise UserError(f'{name} = {value!r}: choose {", ".join(map(repr, allowed))}')
    for name in ('EXPLAIN', 'REVIEW'):
        if cfg.WATCH and getattr(cfg, name):
            raise UserError(f'{name} does not go with WATCH: set one of them to False')
    if cfg.REVIEW is not False:
        settings.check_range('REVIEW', cfg.REVIEW, least=1, most=10_000)


def resolved(cfg: Settings) -> Settings:
    """Return the settings with CHECKPOINT as a tuple of paths, and the folder that TEST_DIR stands for."""
    checkpoints = paths_of(cfg.CHECKPOINT)
    test_dir = cfg.TEST_DIR
    if not test_dir:
        test_dir = usual_test_dir(checkpoints[0])
    return Settings(**{**vars(cfg), 'TEST_DIR': test_dir, 'CHECKPOINT': checkpoints})


def build_predictor(cfg: Settings) -> Predictor:
    """Return the network, or networks, of CHECKPOINT, ready to classify. Raises UserError, naming the file."""
    use_free_cores(choose_device(cfg.USE_GPU))
    predictor = Predictor(cfg.CHECKPOINT, batch_size=cfg.BATCH_SIZE, unknown_below=cfg.UNKNOWN_BELOW, tta=cfg.TTA,
                          tta_below=cfg.TTA_BELOW, average_weights=cfg.AVERAGE_WEIGHTS, use_amp=cfg.USE_AMP,
                          use_gpu=cfg.USE_GPU, use_dp=cfg.USE_DP, keep_features=bool(cfg.REVIEW))
    print(describe_device(predictor.device, predictor.amp_dtype))
    if cfg.UNKNOWN_BELOW and predictor.unknown_label != UNKNOWN:
        print(f'a class is called {UNKNOWN}, so images below UNKNOWN_BELOW are {predictor.unknown_label!r}')
    if cfg.TTA:
        print(f'test-time augmentation: images below {cfg.TTA_BELOW:.0%} are also looked at in {len(predictor.views)} '
              'other views, those of training')
    return predictor


def classify(cfg: Settings, source: Source, predictor: Predictor, tables: Tables, reviewer: Any) -> Summary:
    """Classify every image, and write, print and sort as the answers come; a reviewer takes note. Raises UserError."""
    summary = Summary(predictor.classes, _ON_SHEET, keep_names=cfg.EXPLAIN, is_split=source.is_split)
    workers = worker_count(cfg.NUM_WORKERS)
    if source.count is not None:
        workers = min(workers, source.count)
    with open_sorter(cfg, predictor) as sorter, Bar(total=source.count, desc='classifying', unit='img') as bar:
        for predictions in predictor.batches(source, source.store, workers):
            bar.update(len(predictions))
            if RANK > 0:
                continue  # every process has all predictions, and the first one writes them down
            if summary.count == 0:
                tables.remove_old()  # not before: a run that fails at once leaves the results of the last one
            rows = []
            for prediction in predictions:
                path = str(prediction.image)
                row = table_row(prediction, source.name(path), source.store.stamp(path))
                summary.add(prediction, row)
                if reviewer is not None and not prediction.error and summary.true_class(row['path']) is None:
                    reviewer.add(prediction, row['path'])
                if sorter is not None and not prediction.error:
                    sorter.copy(prediction, row['path'])
                rows.append(row)
            if sorter is not None:
                sorter.finish()
            tables.append(rows)
            print_rows(rows, cfg.PRINT)
    if RANK == 0 and summary.count == 0:
        raise UserError('TEST_DIR: no files are listed on standard input')
    if RANK == 0:
        tables.sync()
    return summary


def draw_contact_sheet(out: Path, source: Source, summary: Summary) -> None:
    """Draw predictions.png, a sample of the images with their answers. What fails becomes a warning."""
    cells = [prediction_cell(row, summary.true_class(row['path']), source.open) for row in summary.sample.items()]
    with warn_instead():
        contact_sheet(out / 'predictions.png', cells, f'{len(cells)} of {summary.count} predictions')


def report_accuracy(out: Path, summary: Summary, unknown_below: float) -> dict[str, Any]:
    """Print and write how many of the images of known class are right, and return the content of report.json."""
    if summary.other_folders:
        print('not counted in the accuracy, since the network knows no such class: '
              + ', '.join(sorted(summary.other_folders)))
    scores, report = summary.scores()
    write_report(out, scores, report)
    with warn_instead():
        plot_confusion(out / 'confusion.png', scores, summary.classes)
    with warn_instead():
        plot_reliability(out / 'calibration.png', scores)
    with warn_instead():
        write_suspects(out / 'suspects.csv', report['suspects'])
    print(f'\n{headline(scores)}, on {len(summary.names)} images\n\n{scores["report_text"]}')
    if unknown_below and max(summary.certain) >= unknown_below:
        answered, right = summary.answered(unknown_below)
        print(f'{answered:.1%} of them are answered with a class, and {right:.1%} of these answers are right')
    return report


def draw_page(cfg: Settings, out: Path, source: Source, summary: Summary, report: dict[str, Any] | None,
              explainer: Any, reviewer: Any) -> None:
    """Write report.html, and with an Explainer explain/….png. What fails becomes a warning."""
    rows = [row for row in summary.sample.items() if not row['error']]
    with warn_instead(), making(out / 'report.html'):
        sections = []
        review = {} if reviewer is None else reviewer.section(report)
        if explainer is not None and summary.readable:
            drawings = explainer.draw(out / 'explain', source, summary.readable)
            sections.append(explainer.section(rows, drawings))
        write_prediction_page(
            out / 'report.html', f'Predictions for {cfg.TEST_DIR}',
            f'{summary.count} images, classified by {", ".join(cfg.CHECKPOINT)}', rows, report, source.open,
            more=sections, first=[review] if review else [])


# What WATCH, SORT_TO, EXPLAIN and REVIEW ask for

def watch_folder(cfg: Settings) -> int:
    """Classify what comes into TEST_DIR until a signal ends it. Return how many images could not be read."""
    with extra('WATCH'):
        from extras.inbox import Inbox
    with explain_failures('lower BATCH_SIZE', 'started again it goes on'):
        inbox = Inbox(cfg.TEST_DIR, cfg.OUTPUT_DIR)
        predictor = build_predictor(cfg)
        return inbox.watch(predictor, open_sorter(cfg, predictor), worker_count(cfg.NUM_WORKERS), cfg.PRINT)


def open_sorter(cfg: Settings, predictor: Predictor) -> contextlib.AbstractContextManager:
    """Return a context that yields the Sorter that SORT_TO asks for, or None. Raises UserError."""
    if cfg.SORT_TO is None or RANK > 0:
        return contextlib.nullcontext()
    with extra('SORT_TO'):
        from extras.inbox import Sorter
    return Sorter(cfg.SORT_TO, cfg.TEST_DIR, predictor.classes, cfg.UNSURE_BELOW)


def build_reviewer(cfg: Settings, source: Source, predictor: Predictor) -> Any:
    """Return what collects the images for the review that REVIEW asks for, or None."""
    if not cfg.REVIEW or RANK > 0:
        return None
    with extra('REVIEW'):
        from extras.review.sections import PredictionReview
    return PredictionReview(source, predictor, cfg.REVIEW)


def build_explainer(cfg: Settings, predictor: Predictor) -> Any:
    """Return the Explainer that EXPLAIN asks for, or None. Raises UserError for a network that it cannot explain."""
    if not cfg.EXPLAIN:
        return None
    with extra('EXPLAIN'):
        from extras.explain import Explainer
    return Explainer(predictor.members[0].saved, cfg.BATCH_SIZE, predictor.device)


if __name__ == '__main__':
    settings.run(main, rows_only=lambda cfg: cfg.PRINT == 'jsonl')
