"""Scores as text and JSON."""
import csv
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from common.evaluation.predictor import Prediction
from common.runtime.files import harmless, replacing, write_csv, write_json, write_text, writing


def headline(scores: dict) -> str:
    """ACC1 with its interval, ACC5 and balanced accuracy in a line."""
    low, high = scores['acc1_interval']
    return (f'ACC1 {scores["acc1"]:.2f} % (95 % interval {low:.1f} to {high:.1f} %), ACC5 {scores["acc5"]:.2f} %, '
            f'balanced accuracy {scores["balanced_accuracy"]:.2f} %')


def calibration(scores: dict) -> str:
    """How far confidence and accuracy lie apart, in a line."""
    return (f'calibration error (ECE) {scores["ece"]:.3f}; with logits divided by {scores["temperature"]:.2f}, which '
            f'these images choose, {scores["calibrated_ece"]:.3f}')


def write_suspects(path: Path, suspects: list[dict]) -> None:
    """suspects.csv from those of a report: pictures whose label may be wrong, the most suspicious first."""
    write_csv(path, suspects, ('file', 'class', 'perhaps', 'score'))


def write_report(folder: Path, scores: dict, report: dict) -> None:
    """report.txt from what common.evaluation.metrics.scores returns, and report.json from `report`."""
    write_text(folder / 'report.txt', f'{headline(scores)}\n{calibration(scores)}\n\n{scores["report_text"]}')
    write_json(folder / 'report.json', report)


# predictions.csv and predictions.jsonl, which grow while pictures are named

COLUMNS = ('path', 'class', 'confidence', 'certainty', 'top5', 'error')  # of the CSV file
CHUNK = 1000  # rows that are read at a time


def describe(prediction: Prediction, name: str, stamp: Iterable[int]) -> dict[str, Any]:
    """A row: the picture's name, its prediction, and its stamp (size in bytes, modification time in ns), by which a
    later run knows it again.
    """
    size, modified = stamp
    row = {'path': name, 'class': prediction.label, 'confidence': None, 'certainty': None, 'top5': [],
           'error': prediction.error, 'bytes': size, 'modified_ns': modified}
    if not prediction.error:
        row |= {'confidence': round(prediction.confidence, 6), 'certainty': round(prediction.certainty, 6),
                'top5': [{'class': name, 'confidence': round(share, 6)} for name, share in prediction.top]}
    return row


class Tables:
    """The same rows twice: for spreadsheets, and a JSON object a line for programs."""

    def __init__(self, folder: Path):
        self.csv, self.lines = folder / 'predictions.csv', folder / 'predictions.jsonl'

    def clear(self) -> None:
        """Raises UserError."""
        for path in (self.lines, self.csv):
            with writing(path):
                path.unlink(missing_ok=True)

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Raises UserError."""
        with writing(self.lines), open(self.lines, 'a', encoding='utf-8', errors='backslashreplace') as file:
            file.write(''.join(f'{json.dumps(row, ensure_ascii=False)}\n' for row in rows))
        self._append_csv(rows)

    def _append_csv(self, rows):
        with writing(self.csv), open(self.csv, 'a', newline='', encoding='utf-8-sig',
                                     errors='backslashreplace') as file:  # Excel needs the byte-order mark
            writer = csv.DictWriter(file, COLUMNS, extrasaction='ignore', quoting=csv.QUOTE_NONNUMERIC)
            if not file.tell():
                writer.writeheader()
            for row in rows:
                top = '; '.join(f'{top["class"]} {top["confidence"]:.4f}' for top in row['top5'])
                writer.writerow({name: harmless(value) for name, value in {**row, 'top5': top}.items()})

    def reopen(self) -> Iterator[dict[str, Any]]:
        """Yields the rows of an earlier run, and makes both tables whole again, should it have been killed.

        Raises UserError.
        """
        if not self.lines.exists():
            self.clear()
            return
        with writing(self.csv):
            self.csv.unlink(missing_ok=True)
        with replacing(self.lines) as aside, open(self.lines, 'rb') as old, open(aside, 'wb') as new:
            while lines := list(itertools.islice(old, CHUNK)):
                kept = [(line, row) for line, row in zip(lines, map(parse, lines), strict=True) if row]
                new.writelines(line for line, _ in kept)
                self._append_csv([row for _, row in kept])
                yield from (row for _, row in kept)


def parse(line: bytes) -> dict[str, Any] | None:
    """A row; None for a line that was cut off."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = line.endswith(b'\n') and isinstance(row, dict) and row.keys() >= {*COLUMNS, 'bytes', 'modified_ns'}
    return row if whole else None
