"""Scores as text and JSON."""
from pathlib import Path

from common.runtime.files import write_json, write_text


def headline(scores: dict) -> str:
    """ACC1, ACC5 and balanced accuracy in a line."""
    return (f'ACC1 {scores["acc1"]:.2f} %, ACC5 {scores["acc5"]:.2f} %, '
            f'balanced accuracy {scores["balanced_accuracy"]:.2f} %')


def write_scores(folder: Path, scores: dict, classes: list[str], about_run: dict) -> None:
    """report.txt and report.json from what common.evaluation.metrics.scores returns. `about_run` goes into the JSON."""
    write_text(folder / 'report.txt', f'{headline(scores)}\n\n{scores["report_text"]}')
    confusion = {name: {classes[column]: int(row[column]) for column in row.nonzero()[0]}
                 for name, row in zip(classes, scores['confusion'], strict=True)}
    write_json(folder / 'report.json', {
        **about_run, **{key: scores[key] for key in ('acc1', 'acc5', 'balanced_accuracy', 'report')},
        'confusion': confusion})  # true class: {predicted class: images}
