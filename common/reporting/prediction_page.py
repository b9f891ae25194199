"""report.html of test.py, and the pictures of where a network looked."""
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from common.data.stores import Store
from common.evaluation.explainer import Explanation
from common.reporting.heatmaps import overlay, side_by_side
from common.reporting.page import SIDE, Thumbnails, as_uri, headline_tiles, report_sections, write_page
from common.runtime.console import printable
from common.runtime.files import replacing
from common.settings import Settings

SHOWN = 36  # pictures, evenly over the list


def draw_explanations(folder: Path, explained: Iterable[Explanation], names: dict[Path, str]) -> dict[str, Path]:
    """Each picture beside its class attention and its attribution, as folder/NAME.png, where `names` is {path: name}.

    Returns {name: file}. Raises UserError.
    """
    drawn = {}
    for path, image, attention, attribution in explained:
        sheet = side_by_side({'picture': image, 'class attention': overlay(image, attention),
                              'attribution': overlay(image, attribution)})
        file = drawn[names[path]] = folder / f'{names[path]}.png'
        with replacing(file) as aside:
            aside.parent.mkdir(parents=True, exist_ok=True)
            sheet.save(aside, 'PNG')
    return drawn


def write_prediction_page(cfg: Settings, path: Path, store: Store, rows: list[dict], report: dict[str, Any] | None,
                          explained: dict[str, Path]) -> None:
    """`rows` are those of predictions.json, `report` is that of common/evaluation/report.py where classes are known,
    `explained` is {path below TEST_DIR: file} of draw_explanations. Raises UserError.
    """
    folder = Path(cfg.TEST_DIR)
    thumbnail = Thumbnails(lambda file: store.open(folder if folder.is_file() else folder / file, at_least=256))
    readable = [row for row in rows if not row['error']]
    count = min(SHOWN, len(readable))
    shown = [readable[i * len(readable) // count] for i in range(count)]
    sections = report_sections(report, thumbnail) if report else [
        {'name': 'predictions', 'heading': 'Predictions', 'pictures': [
            {'images': [thumbnail(row['path'])], 'lines': lines(row)} for row in shown]}]
    if explained:
        sections.append({
            'name': 'explain', 'heading': 'Where it looked', 'pictures': [
                {'images': [as_uri(Image.open(explained[row['path']]), 3 * SIDE)], 'wide': True, 'lines': lines(row)}
                for row in shown], 'note':
            'Beside each picture what the class token attended to, and what spoke for the class, both brightest where '
            'they are largest. The folder explain has all of them.'})
    write_page(path, printable(f'Predictions for {cfg.TEST_DIR}'),
               printable(f'{len(rows)} pictures, named with {cfg.CHECKPOINT}'),
               headline_tiles(report, f'on {report["pictures"]} pictures') if report else [], sections)


def lines(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [('', printable(f'{row["class"]} {row["confidence"]:.0%}')), ('soft', printable(row['path']))]
