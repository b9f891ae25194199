"""WATCH and SORT_TO of test.py: a folder that fills up, and copies of its images in a folder for each answer."""
import time
from contextlib import AbstractContextManager
from pathlib import Path

from common.data.folders import Files
from common.data.sources import Source
from common.evaluation.predictor import Predictor
from common.evaluation.report import table_row
from common.reporting.tables import Tables, print_rows
from common.runtime.errors import UserError
from common.runtime.files import sole_writer, writable_folder
from common.runtime.names import is_below
from common.runtime.processes import LAUNCHED
from common.runtime.signals import StopRequest
from extras.inbox.arrivals import Arrivals
from extras.inbox.earlier import reopen
from extras.inbox.sorting import Sorter

__all__ = ['Inbox', 'Sorter']

PAUSE = 1.  # seconds between two looks at the folder


class Inbox:
    """A folder whose images are classified as they come in; the tables in `output_dir` say which were before.

    Raises UserError for folders that cannot be watched.
    """

    def __init__(self, folder: str, output_dir: str):
        if LAUNCHED:
            raise UserError('WATCH: one process, without torchrun, watches a folder')
        if not Path(folder).is_dir():
            raise UserError(f'WATCH: TEST_DIR = {folder!r} is no folder')
        if Path(output_dir).resolve().is_relative_to(Path(folder).resolve()):
            raise UserError(f'OUTPUT_DIR = {output_dir!r} lies in TEST_DIR: choose a folder outside')
        root = str(Path(folder))
        self.source = Source(root, Files(root), count=None)
        self.out = writable_folder(output_dir, 'OUTPUT_DIR')

    def watch(self, predictor: Predictor, sorter: AbstractContextManager, workers: int,
              how_to_print: str | None) -> int:
        """Classify what comes in until a signal ends it, and return how many images could not be read.

        `sorter` gives a Sorter or None inside `with`; `how_to_print` is PRINT. Raises UserError.
        """
        classified = 0
        unreadable = 0
        tables = Tables(self.out)
        with sole_writer(self.out, 'OUTPUT_DIR'):
            done = {}
            for row in reopen(tables):
                if is_below(row['path']):  # others are those of a list, or of someone else's table
                    done[self.source.path(row['path'])] = (row['bytes'], row['modified_ns'])
            arrivals = Arrivals(self.source.root, done)
            print(f'watching {self.source.root}, {len(done)} images were classified before; Ctrl-C ends it')
            with sorter as sorting, StopRequest('leaving after this batch') as stop:
                while stop.signum is None:
                    ready = arrivals.ready()
                    # A few images are read by this process: starting others would take longer.
                    needed = workers if len(ready) > predictor.batch_size else 0
                    for predictions in predictor.batches(ready, self.source.store, needed):
                        rows = []
                        for prediction in predictions:
                            stamp = arrivals.take(prediction.image, readable=not prediction.error)
                            if stamp is None:
                                continue
                            row = table_row(prediction, self.source.name(prediction.image), stamp)
                            if sorting is not None and not prediction.error:
                                sorting.copy(prediction, row['path'])
                            rows.append(row)
                            if prediction.error:
                                unreadable += 1
                            else:
                                classified += 1
                        if sorting is not None:
                            sorting.finish()
                        # Last, so that a run that was killed and is started again finds its copies, and goes on.
                        if rows:
                            tables.append(rows)
                        print_rows(rows, how_to_print)
                        if stop.signum is not None:
                            break
                    time.sleep(PAUSE)
            tables.sync()
        print(f'{classified} images classified, {unreadable} unreadable; see {self.out}/predictions.csv and .jsonl')
        return unreadable
