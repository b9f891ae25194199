"""report.html: what there is to know of a run or of predictions, in one file that needs nothing else.

A Section is {'name', 'heading'} and any of
    'note'      a text
    'figures'   [JSON of common/reporting/figures.py]
    'table'     {'columns', 'rows'}
    'pictures'  [{'images': [data URI], 'lines': [(CSS class, text)]}], with 'wide': True for one that takes two places
    'facts'     [(heading, [(name, value)])]
    'html'      HTML that an extra has made, with its 'script'
"""
import base64
import io
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from common.reporting import figures
from common.reporting.tables import short_labels
from common.runtime.console import printable
from common.runtime.errors import UserError
from common.runtime.files import write_text
from models.errors import first_line

THUMBNAIL_SIDE = 192  # pixels of the longer side of an image in the page
MOST_SUSPECTS = 48    # images that may have a wrong label are shown; suspects.csv lists all
LONGEST_NAME = 30     # columns of a class's name beside a confusion matrix
MATRIX_CLASSES = 200  # classes that a confusion matrix has room for; of more, as many pairs of classes are listed

Section = dict[str, Any]


class Tile(NamedTuple):
    """A number at the top of the page."""
    label: str
    value: str
    note: str


@contextmanager
def making(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong inside, where a page is made, into a UserError: a page that fails must not end a run."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of two libraries, which may be missing, or of files of any content
        raise UserError(f'{path} could not be made ({type(error).__name__}: {first_line(error)})') from error


def write_page(path: Path, title: str, subtitle: str, tiles: Sequence[tuple[str, str, str]],
               sections: list[Section]) -> None:
    """Write a page. To be called inside `making`, together with all that leads to it."""
    from jinja2 import Environment, FileSystemLoader
    from plotly.offline import get_plotlyjs

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    contents = [(section['name'], section['heading']) for section in sections]
    text = environment.get_template('page.html').render(
        title=title, subtitle=subtitle, tiles=tiles, contents=contents, sections=sections, plotly=get_plotlyjs(),
        nonce=secrets.token_urlsafe(16))  # no script runs without it, whatever a name of a file or class may hold
    write_text(path, text)


class Thumbnails:
    """Small copies of images as data URIs, each made once. `open_image` takes what the page calls an image."""

    def __init__(self, open_image: Callable[[str], Image.Image]):
        self.open_image = open_image
        self.made: dict[str, str] = {}
        self.shown: set[str] = set()

    def __call__(self, name: str) -> str:
        """Return the data URI of an image, '' where it can no longer be opened."""
        self.shown.add(name)
        if name not in self.made:
            try:
                self.made[name] = as_uri(self.open_image(name))
            except Exception:  # it was readable a moment ago
                self.made[name] = ''
        return self.made[name]

    def keep_shown(self) -> None:
        """Forget the images that the page which is now complete does not show: each epoch shows others."""
        self.made = {name: uri for name, uri in self.made.items() if name in self.shown}
        self.shown = set()


def as_uri(image: Image.Image, side: int = THUMBNAIL_SIDE) -> str:
    """Return a copy of an image as a data URI, with at most `side` pixels on its longer side."""
    small = image.convert('RGB')
    small.thumbnail((side, side))
    small.info.clear()  # a comment in the image file would come into the page
    file = io.BytesIO()
    small.save(file, 'JPEG', quality=80)
    return f'data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}'


# Sections that both pages have, from report.json (common/evaluation/report.py) and from the log

def headline_tiles(report: dict[str, Any], note: str) -> list[Tile]:
    """Return the main scores of a report; `note` says which images they are of."""
    low, high = report['acc1_interval']
    missing = sum(row['pictures'] == 0 for row in report['per_class'])
    besides = f', except {missing} that have no images' if missing else ''
    return [
        Tile('ACC1', f'{report["acc1"]:.1f} %', f'95 % interval {low:.1f} to {high:.1f} %; {note}'),
        Tile('balanced accuracy', f'{report["balanced_accuracy"]:.1f} %', f'every class counts the same{besides}'),
        Tile('macro F1', f'{report["macro_f1"]:.3f}', f'mean over the classes{besides}'),
        Tile('ACC5', f'{report["acc5"]:.1f} %', 'right class among the five most probable'),
        Tile('calibration error', f'{report["ece"]:.3f}',
             f'{report["calibrated_ece"]:.3f} with a temperature of {report["temperature"]:.2f}')]


def curve_sections(history: list[dict[str, Any]]) -> list[Section]:
    """Return loss, accuracy, learning rate and gradient norm over the epochs."""
    losses = {'train_loss': 'training (smoothed labels)', 'raw_loss': 'validation', 'ema_loss': 'validation (EMA)'}
    accuracies = {'train_acc1': 'training (augmented)', 'raw_acc1': 'validation', 'ema_acc1': 'validation (EMA)'}
    drawn = [
        figures.curves(history, losses, 'loss'),
        figures.curves(history, accuracies, 'ACC1, %'),
        figures.curves(history, {'lr': 'learning rate'}, "learning rate at the epoch's end", exponentformat='power'),
        figures.curves(history, {'grad_norm': 'gradient norm'}, 'mean gradient norm before clipping')]
    return [{'name': 'curves', 'heading': 'Training', 'figures': [figure for figure in drawn if figure is not None]}]


def report_sections(report: dict[str, Any], thumbnail: Callable[[str], str]) -> list[Section]:
    """Return what a report says; `thumbnail` makes data URIs of its files."""
    columns = {'class': 'class', 'precision': 'precision', 'recall': 'recall', 'f1': 'F1', 'roc_auc': 'ROC AUC',
               'pictures': 'images'}
    rows = [{**row, 'class': printable(row['class'])} for row in report['per_class']]
    mistakes = [described(thumbnail, item, ('right', item['class']), ('wrong', answer(item)))
                for item in report['mistakes']]
    doubtful = [described(thumbnail, item, ('right', answer(item))) for item in report['doubtful']]
    return [
        {'name': 'confusion', 'heading': 'Confusions', **confusions(report['confusion'])},
        {'name': 'classes', 'heading': 'Classes', 'note': 'A click on a column sorts the table.',
         'table': {'columns': list(columns.values()), 'rows': [[row[name] for name in columns] for row in rows]}},
        {'name': 'confidence', 'heading': 'Confidence', 'note':
            'Left: how often images of a confidence are right, without the temperature. Right: the accuracy that '
            'test.py reaches where it may answer "unknown", for each UNKNOWN_BELOW.',
         'figures': [figures.reliability(report['reliability']), figures.answered(report['answers'])]},
        {'name': 'mistakes', 'heading': 'Most confident mistakes', 'pictures': mistakes},
        {'name': 'doubtful', 'heading': 'Least confident hits', 'pictures': doubtful},
        suspect_section(report['suspects'], thumbnail)]


def confusions(counts: dict[str, dict[str, int]]) -> Section:
    """Return the matrix of {true class: {predicted class: images}}, or of many classes the most frequent confusions."""
    if len(counts) <= MATRIX_CLASSES:
        matrix = [[row.get(name, 0) for name in counts] for row in counts.values()]
        return {'note': 'Rows are true classes, columns are predicted ones. Point at a cell to see the names of both.',
                'figures': [figures.confusion(matrix, short_labels(list(counts), LONGEST_NAME))]}
    pairs = []
    for true_class, row in counts.items():
        for predicted, count in row.items():
            if predicted != true_class:
                pairs.append([printable(true_class), printable(predicted), count, count / sum(row.values())])
    pairs.sort(key=lambda pair: -pair[2])
    return {'table': {'columns': ['class', 'predicted', 'images', 'share of the class'],
                      'rows': pairs[:MATRIX_CLASSES]}}


def answer(item: dict[str, Any]) -> str:
    """Return the predicted class and its confidence."""
    return f'{item["named"]} {item["confidence"]:.0%}'


def described(thumbnail: Callable[[str], str], item: dict[str, Any], *lines: tuple[str, str]) -> dict[str, Any]:
    """Return an image of a section's 'pictures': `item` has its 'file', `lines` are [(CSS class, text)]."""
    all_lines = [*lines, ('soft', item['file'])]
    return {'images': [thumbnail(item['file'])], 'lines': [(kind, printable(text)) for kind, text in all_lines]}


def suspect_section(suspects: list[dict[str, Any]], thumbnail: Callable[[str], str]) -> Section:
    """Return the images whose label may be wrong."""
    note = (f'{len(suspects)} images look more like another class than like their own, the most suspicious first; '
            'suspects.csv lists them all. Look at them before you move any.')
    pictures = []
    for item in suspects[:MOST_SUSPECTS]:
        label = ('wrong', f'label: {item["class"]}')
        other = ('right', f'perhaps {item["perhaps"]}')
        pictures.append(described(thumbnail, item, label, other))
    return {'name': 'suspects', 'heading': 'Labels that may be wrong', 'note': note, 'pictures': pictures}


# report.html of test.py

def write_prediction_page(path: Path, title: str, subtitle: str, rows: list[dict[str, Any]],
                          report: dict[str, Any] | None, open_image: Callable[[str], Image.Image],
                          more: Sequence[Section] = (), first: Sequence[Section] = ()) -> None:
    """Write the page of predictions. To be called inside `making`.

    `rows` are rows of the tables, of readable images; `open_image` takes their paths. `report` is that of
    common/evaluation/report.py where classes are known, else None. `first` and `more` are sections that come before
    and after the others.
    """
    thumbnail = Thumbnails(open_image)
    if report is None:
        tiles = []
        pictures = [{'images': [thumbnail(row['path'])], 'lines': prediction_lines(row)} for row in rows]
        sections = [{'name': 'predictions', 'heading': 'Predictions', 'pictures': pictures}]
    else:
        tiles = headline_tiles(report, f'on {report["pictures"]} images')
        sections = report_sections(report, thumbnail)
    write_page(path, printable(title), printable(subtitle), tiles, [*first, *sections, *more])


def prediction_lines(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines below an image, from its row in the tables."""
    return [('', printable(f'{row["class"]} {row["confidence"]:.0%}')), ('soft', printable(row['path']))]
