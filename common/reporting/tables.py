"""Scores and predictions as text, CSV and JSON."""
import csv
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.runtime.console import Bar, PrintableStream, as_json, printable, shortened
from common.runtime.files import harmless, no_link, sync, write_csv, write_json, write_text, writing

# Scores

REPORT_FILES = ('report.txt', 'report.json', 'report.html', 'confusion.png', 'calibration.png', 'suspects.csv')


def headline(scores: dict[str, Any]) -> str:
    """Return a line with ACC1 and its interval, ACC5 and balanced accuracy."""
    low, high = scores['acc1_interval']
    return (f'ACC1 {scores["acc1"]:.2f} % (95 % interval {low:.1f} to {high:.1f} %), ACC5 {scores["acc5"]:.2f} %, '
            f'balanced accuracy {scores["balanced_accuracy"]:.2f} %')


def calibration(scores: dict[str, Any]) -> str:
    """Return a line that says how far confidence and accuracy lie apart."""
    return (f'calibration error (ECE) {scores["ece"]:.3f}; {scores["calibrated_ece"]:.3f} with logits divided by '
            f'{scores["temperature"]:.2f}, which fits these images best')


def short_labels(classes: Sequence[str], most: int) -> list[str]:
    """Return what plots call each class, at most `most` columns wide: no control characters, long names without their
    middle, and the number of the class behind names that would be alike.
    """
    labels = [shortened(printable(name), most) for name in classes]
    count = Counter(labels)
    for number, name in enumerate(classes):
        if count[labels[number]] > 1:
            suffix = f' #{number}'
            labels[number] = shortened(printable(name), most - len(suffix)) + suffix
    return labels


def write_report(folder: Path, scores: dict[str, Any], report: dict[str, Any]) -> None:
    """Write report.txt from `scores` (common/evaluation/metrics.py) and report.json from `report`. Raises UserError."""
    text = f'{headline(scores)}\n{calibration(scores)}\n\n{scores["report_text"]}'
    write_text(folder / 'report.txt', printable(text, allowed='\n'))
    write_json(folder / 'report.json', report)


def write_suspects(path: Path, suspects: list[dict[str, Any]]) -> None:
    """Write suspects.csv: images whose label may be wrong, the most suspicious first. Raises UserError.

    Their files are paths below DATA_DIR after training, and below TEST_DIR after test.py.
    """
    write_csv(path, suspects, ('file', 'class', 'perhaps', 'score'))


# Predictions: the rows of common/evaluation/report.py, in files that grow and on standard output

PREDICTION_COLUMNS = ('path', 'class', 'confidence', 'certainty', 'top5', 'error')


class Tables:
    """predictions.csv for spreadsheets, and the same rows in predictions.jsonl, a JSON object a line for programs."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.csv = folder / 'predictions.csv'
        self.lines = folder / 'predictions.jsonl'

    def remove_old(self) -> None:
        """Delete the tables of an earlier run, after its reports, which this one may not have. Raises UserError."""
        if self.lines.exists():
            for name in REPORT_FILES:
                delete(self.folder / name)
        self.clear()

    def clear(self) -> None:
        """Delete both tables. Raises UserError."""
        delete(self.lines)
        delete(self.csv)

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Write rows at the end of both tables. Raises UserError."""
        with writing(self.lines), open(self.lines, 'a', encoding='utf-8', errors='backslashreplace',
                                       opener=no_link) as file:
            file.write(''.join(f'{as_json(row)}\n' for row in rows))
        self.append_csv(rows)

    def append_csv(self, rows: list[dict[str, Any]]) -> None:
        """Write rows at the end of predictions.csv alone. Raises UserError."""
        with writing(self.csv), open(self.csv, 'a', newline='', encoding='utf-8-sig',
                                     errors='backslashreplace', opener=no_link) as file:  # Excel needs the BOM
            writer = csv.DictWriter(file, PREDICTION_COLUMNS, extrasaction='ignore', quoting=csv.QUOTE_NONNUMERIC)
            if not file.tell():
                writer.writeheader()
            for row in rows:
                top = '; '.join(f'{top["class"]} {top["confidence"]:.4f}' for top in row['top5'])
                cells = {**row, 'top5': top}
                writer.writerow({name: harmless(value) for name, value in cells.items()})

    def sync(self) -> None:
        """Wait until the disk has both tables, as far as there are any. Raises UserError."""
        for table in (self.lines, self.csv):
            if table.exists():
                with writing(table):
                    sync(table)
        with writing(self.folder):
            sync(self.folder)


def delete(path: Path) -> None:
    """Delete a file, if it is there. Raises UserError."""
    with writing(path):
        path.unlink(missing_ok=True)


def print_rows(rows: list[dict[str, Any]], how: str | None) -> None:
    """Print rows as PRINT says: a line of 'text' for each, a JSON object ('jsonl') on standard output, or nothing."""
    for row in rows:
        if how == 'jsonl':
            print(json.dumps(row), file=PrintableStream(sys.__stdout__), flush=True)
        elif how == 'text':
            result = row['error'] or f'{row["class"]} ({row["confidence"]:.1%})'
            Bar.write(f'{printable(row["path"])} → {printable(result)}')
