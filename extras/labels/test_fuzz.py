"""A table of classes may hold anything: it is read, or refused in one line."""
import contextlib

import pytest
from fuzzing import MANY, TEXTS, write_odd
from hypothesis import given

from common.runtime.errors import UserError
from extras.labels import read_labels


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    return tmp_path_factory.mktemp('fuzz') / 'labels.csv'


@MANY
@given(text=TEXTS)
def test_tables_of_classes(table, text):
    for beginning in ('', 'file,class,group\n'):
        write_odd(table, beginning + text)
        with contextlib.suppress(UserError):
            read_labels(str(table), str(table.parent))
