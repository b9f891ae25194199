"""report.html: what there is to know of a run or of predictions, in one file that needs nothing else.

A section is {'name', 'heading'} and any of 'note', 'figures' (of common/reporting/figures.py), 'table' ({'columns',
'rows'}), 'pictures' ([{'images': [data URI], 'lines': [(CSS class, text)]}]) and 'facts' ([(heading, [(name, value)])])
"""
import base64
import html
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from common.reporting import figures
from common.runtime.console import printable
from common.runtime.errors import UserError
from common.runtime.files import write_text

SIDE = 192     # pixels, of the pictures in the page
SUSPECTS = 48  # of them are shown; suspects.csv lists all
CLASSES = 200  # that a confusion matrix has room for; of more, as many pairs of classes are listed

Section = dict[str, Any]


@contextmanager
def making(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside, where a page is made, is a UserError: no page is worth a run."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of two libraries, which may be missing, and of files of earlier versions
        raise UserError(f'{path} could not be made ({type(error).__name__}: {error})') from error


def write_page(path: Path, title: str, subtitle: str, tiles: list[tuple[str, str, str]],
               sections: list[Section]) -> None:
    """`tiles` are [(label, value, note)]. To be called, as all that leads to it, inside `making`."""
    from jinja2 import Environment, FileSystemLoader
    from plotly.offline import get_plotlyjs

    page = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    write_text(path, page.get_template('page.html').render(
        title=title, subtitle=subtitle, tiles=tiles, sections=sections, plotly=get_plotlyjs(),
        contents=[(section['name'], section['heading']) for section in sections]))


class Thumbnails:
    """Small copies of pictures as data URIs, each made once. `open_image` takes what names a picture."""

    def __init__(self, open_image: Callable[[str], Image.Image]):
        self.open_image, self.made = open_image, {}

    def __call__(self, name: str) -> str:
        if name not in self.made:
            try:
                self.made[name] = as_uri(self.open_image(name))
            except Exception:  # it was readable a moment ago
                self.made[name] = ''
        return self.made[name]


def as_uri(image: Image.Image, side: int = SIDE) -> str:
    """A copy of an image as a data URI, whose longer side has at most so many pixels."""
    image, file = image.convert('RGB'), io.BytesIO()
    image.thumbnail((side, side))
    image.save(file, 'JPEG', quality=80)
    return f'data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}'


def headline_tiles(report: dict[str, Any], note: str) -> list[tuple[str, str, str]]:
    low, high = report['acc1_interval']
    return [('ACC1', f'{report["acc1"]:.1f} %', f'95 % interval {low:.1f} to {high:.1f} %; {note}'),
            ('balanced accuracy', f'{report["balanced_accuracy"]:.1f} %', 'every class counts the same'),
            ('macro F1', f'{report["macro_f1"]:.3f}', 'mean over the classes'),
            ('ACC5', f'{report["acc5"]:.1f} %', 'right class among the five most probable'),
            ('calibration error', f'{report["ece"]:.3f}', f'{report["calibrated_ece"]:.3f} with a temperature of '
                                                          f'{report["temperature"]:.2f}')]


def curve_sections(history: list[dict]) -> list[Section]:
    """Loss, accuracy, learning rate and norm of the gradient over the epochs."""
    drawn = [
        figures.curves(history, {'train_loss': 'training (smoothed labels)', 'raw_loss': 'validation',
                                 'ema_loss': 'validation (EMA)'}, 'loss'),
        figures.curves(history, {'train_acc1': 'training (augmented)', 'raw_acc1': 'validation',
                                 'ema_acc1': 'validation (EMA)'}, 'ACC1, %'),
        figures.curves(history, {'lr': 'learning rate'}, "learning rate at the epoch's end", exponentformat='power'),
        figures.curves(history, {'grad_norm': 'gradient norm'}, 'mean norm of the gradient, before clipping')]
    return [{'name': 'curves', 'heading': 'Training', 'figures': [figure for figure in drawn if figure]}]


def report_sections(report: dict[str, Any], thumbnail: Callable[[str], str]) -> list[Section]:
    """What common.evaluation.report says."""
    rows = [[printable(row['class']), *list(row.values())[1:]] for row in report['per_class']]
    return [
        {'name': 'confusion', 'heading': 'Confusions', **confusions(report['confusion'])},
        {'name': 'classes', 'heading': 'Classes', 'note': 'A click on a column sorts the table.',
         'table': {'columns': ['class', 'precision', 'recall', 'F1', 'ROC AUC', 'pictures'], 'rows': rows}},
        {'name': 'confidence', 'heading': 'Confidence', 'note':
            'Left: how often pictures of a confidence are right, without the temperature. Right: what accuracy test.py '
            'reaches where it may answer "unknown", for each UNKNOWN_BELOW.',
         'figures': [figures.reliability(report['reliability']), figures.answered(report['answers'])]},
        {'name': 'mistakes', 'heading': 'Most confident mistakes', 'pictures': [
            described(thumbnail, item, ('right', item['class']), ('wrong', percent(item)))
            for item in report['mistakes']]},
        {'name': 'doubtful', 'heading': 'Least confident hits', 'pictures': [
            described(thumbnail, item, ('right', percent(item))) for item in report['doubtful']]},
        suspect_section(report['suspects'], thumbnail)]


def confusions(counts: dict[str, dict[str, int]]) -> Section:
    """The matrix, or of many classes the most frequent confusions, of {true class: {named class: pictures}}."""
    if len(counts) <= CLASSES:
        matrix = [[row.get(name, 0) for name in counts] for row in counts.values()]
        return {'figures': [figures.confusion(matrix, [unmarked(printable(name)) for name in counts])]}
    pairs = [[printable(true), printable(named), count, count / sum(row.values())]
             for true, row in counts.items() for named, count in row.items() if named != true]
    pairs = sorted(pairs, key=lambda pair: -pair[2])[:CLASSES]
    return {'table': {'columns': ['class', 'named', 'pictures', 'share of the class'], 'rows': pairs}}


def unmarked(name: str) -> str:
    """A text in which Plotly finds neither tags nor formulas."""
    return html.escape(name).replace('$', '&#36;')


def percent(item: dict[str, Any]) -> str:
    return f'{item["named"]} {item["confidence"]:.0%}'


def described(thumbnail: Callable[[str], str], item: dict[str, Any], *lines: tuple[str, str]) -> dict[str, Any]:
    """A picture with its labels, {'file', …}."""
    return {'images': [thumbnail(item['file'])],
            'lines': [(kind, printable(text)) for kind, text in (*lines, ('soft', item['file']))]}


def suspect_section(suspects: list[dict[str, Any]], thumbnail: Callable[[str], str]) -> Section:
    note = (f'{len(suspects)} pictures look more like another class than like their own, the most suspicious first; '
            'suspects.csv lists them all. Look before you move any.')
    return {'name': 'suspects', 'heading': 'Labels that may be wrong', 'note': note, 'pictures': [
        described(thumbnail, item, ('wrong', f'label: {item["class"]}'), ('right', f'perhaps {item["perhaps"]}'))
        for item in suspects[:SUSPECTS]]}


# report.html of test.py, and the pictures of where a network looked

def write_prediction_page(path: Path, title: str, subtitle: str, rows: list[dict], report: dict[str, Any] | None,
                          open_image: Callable[[str], Image.Image], explained: dict[str, Path]) -> None:
    """`rows` are those of the tables for readable pictures to show, whose paths `open_image` takes; `report` is that of
    common/evaluation/report.py where classes are known; `explained` is what draw_explanations returned.
    """
    thumbnail = Thumbnails(open_image)
    sections = report_sections(report, thumbnail) if report else [
        {'name': 'predictions', 'heading': 'Predictions', 'pictures': [
            {'images': [thumbnail(row['path'])], 'lines': lines(row)} for row in rows]}]
    if explained:
        sections.append({
            'name': 'explain', 'heading': 'Where it looked', 'pictures': [
                {'images': [as_uri(Image.open(explained[row['path']]), 3 * SIDE)], 'wide': True, 'lines': lines(row)}
                for row in rows], 'note':
            'Beside each picture what the class token attended to, and what spoke for the class, both brightest where '
            'they are largest. They are also in the folder explain.'})
    tiles = headline_tiles(report, f'on {report["pictures"]} pictures') if report else []
    write_page(path, printable(title), printable(subtitle), tiles, sections)


def lines(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [('', printable(f'{row["class"]} {row["confidence"]:.0%}')), ('soft', printable(row['path']))]
