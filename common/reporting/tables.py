"""Scores as text and JSON."""
from pathlib import Path

from common.runtime.files import write_json, write_text


def headline(scores: dict) -> str:
    """ACC1 with its interval, ACC5 and balanced accuracy in a line."""
    low, high = scores['acc1_interval']
    return (f'ACC1 {scores["acc1"]:.2f} % (95 % interval {low:.1f} to {high:.1f} %), ACC5 {scores["acc5"]:.2f} %, '
            f'balanced accuracy {scores["balanced_accuracy"]:.2f} %')


def calibration(scores: dict) -> str:
    """How far confidence and accuracy lie apart, in a line."""
    return (f'calibration error (ECE) {scores["ece"]:.3f}; with logits divided by {scores["temperature"]:.2f}, which '
            f'these images choose, {scores["calibrated_ece"]:.3f}')


def write_scores(folder: Path, scores: dict, classes: list[str], about_run: dict) -> None:
    """report.txt and report.json from what common.evaluation.metrics.scores returns. `about_run` goes into the JSON."""
    write_text(folder / 'report.txt', f'{headline(scores)}\n{calibration(scores)}\n\n{scores["report_text"]}')
    confusion = {name: {classes[column]: int(row[column]) for column in row.nonzero()[0]}
                 for name, row in zip(classes, scores['confusion'], strict=True)}
    numbers = ('acc1', 'acc1_interval', 'acc5', 'balanced_accuracy', 'ece', 'temperature', 'calibrated_ece', 'report')
    write_json(folder / 'report.json', {
        **about_run, **{key: scores[key] for key in numbers},
        'confusion': confusion})  # true class: {predicted class: images}
