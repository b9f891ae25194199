"""report.html of test.py, and the pictures of where a network looked."""
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from common.reporting.heatmaps import overlay, side_by_side
from common.reporting.page import SIDE, Thumbnails, as_uri, headline_tiles, report_sections, write_page
from common.runtime.console import printable
from common.runtime.files import replacing


def draw_explanations(folder: Path, explained: Iterable[tuple[Path, Image.Image, torch.Tensor, torch.Tensor]],
                      names: dict[Path, str]) -> dict[str, Path]:
    """Each picture beside its class attention and its attribution, as folder/NAME.png: `explained` yields its path,
    itself and the two maps, `names` is {path: name}.

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
