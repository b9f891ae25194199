"""Reports as text and JSON."""
from common.reporting.plots import plot_confusion
from common.runtime.files import write_json, write_text


def write_scores(folder, scores, classes, info):
    """report.txt, report.json and confusion.png from what common.metrics.scores returns. `info` goes into the JSON."""
    text = (f'ACC1 {scores["acc1"]:.2f} %, ACC5 {scores["acc5"]:.2f} %, '
            f'balanced accuracy {scores["balanced_accuracy"]:.2f} %')
    write_text(folder / 'report.txt', f'{text}\n\n{scores["report_text"]}')
    confusion = {name: {classes[column]: int(row[column]) for column in row.nonzero()[0]}
                 for name, row in zip(classes, scores['confusion'], strict=True)}
    write_json(folder / 'report.json', {
        **info, **{key: scores[key] for key in ('acc1', 'acc5', 'balanced_accuracy', 'report')},
        'confusion': confusion})  # true class: {predicted class: pictures}
    plot_confusion(folder / 'confusion.png', scores['confusion'], classes, text)
    return text
