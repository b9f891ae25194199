"""The files beside the shards may hold anything: they are read, or refused in one line."""
import contextlib

import pytest
from fuzzing import MANY, TEXTS, write_odd
from hypothesis import given

from common.runtime.errors import UserError
from extras.shards import CLASSES, LISTING, Shards

pytest.importorskip('litdata')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('fuzz')


@MANY
@given(text=TEXTS)
def test_listings_of_shards(folder, text):
    write_odd(folder / 'index.json', text)
    for beginning in ('', 'file,class,bytes\n'):
        write_odd(folder / LISTING, beginning + text)
        for classes in (text, '["a", "b"]'):
            write_odd(folder / CLASSES, classes)
            with contextlib.suppress(UserError):
                Shards(folder)
