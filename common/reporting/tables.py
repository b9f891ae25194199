"""Scores as text and JSON."""
from pathlib import Path

from common.runtime.files import write_csv, write_json, write_text


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
