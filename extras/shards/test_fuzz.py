"""Anything at all in place of a file of shards leads to images or to one line."""
import io
import json
import os

import pytest
from fuzzing import (
    STRANGE,
    as_csv,
    cases,
    check_line,
    confined,
    edited,
    not_waited_for,
    odd_text,
    put_strange,
    spoiled_file,
)
from PIL import Image

from common.data.datasets import SeededImageFolder
from common.runtime.errors import UserError

FILES = ('index.json', 'classes.json', 'pictures.csv', 'chunk-0-0.bin')


def picture(level):
    """The bytes of a small image."""
    file = io.BytesIO()
    Image.new('RGB', (5, 4), (level, 0, 0)).save(file, 'PNG')
    return file.getvalue()


ITEMS = [picture(level) for level in (0, 50, 100)]
TABLE = [['file', 'class', 'bytes'], *([f'{name}/{number}.png', name, str(len(item))]
                                       for number, (name, item) in enumerate(zip('aba', ITEMS, strict=True)))]
CLASSES = ['a', 'b']


def shard(items):
    """A shard in litdata's format: how many items, where each begins and the last one ends, and the items, each behind
    its size.
    """
    numbers = [len(items), 4 * (len(items) + 2)]
    for item in items:
        numbers.append(numbers[-1] + 4 + len(item))
    parts = [number.to_bytes(4, 'little') for number in numbers]
    return b''.join(parts) + b''.join(len(item).to_bytes(4, 'little') + item for item in items)


SHARD = shard(ITEMS)
INDEX = {'chunks': [{'chunk_bytes': len(SHARD), 'chunk_size': 3, 'dim': None, 'filename': 'chunk-0-0.bin'}],
         'config': {'chunk_bytes': 2 ** 20, 'chunk_size': None, 'compression': None, 'data_format': ['bytes'],
                    'encryption': None, 'item_loader': 'PyTreeLoader'}}
GOOD = {'index.json': json.dumps(INDEX).encode(), 'classes.json': json.dumps(CLASSES).encode(),
        'pictures.csv': as_csv(TABLE).encode(), 'chunk-0-0.bin': SHARD}


def read_or_refuse(folder):
    """Read all images, as train.py does; return how many there are, None where the shards are refused."""
    with confined(folder):
        try:
            dataset = SeededImageFolder(folder)
        except UserError as error:
            check_line(error)
            return None
        assert len(set(dataset.classes)) == len(dataset.classes)
        count = 0
        for path, target in dataset.samples:
            assert os.path.abspath(path).startswith(f'{folder}{os.sep}') and 0 <= target < len(dataset.classes)
            try:
                count += dataset.store.open(path).size == (5, 4)
            except UserError as error:
                check_line(error)
        return count


def write(folder, **contents):
    for name, content in {**GOOD, **contents}.items():
        (folder / name).write_bytes(content)


def test_the_whole_is_accepted(tmp_path):
    write(tmp_path)
    assert read_or_refuse(tmp_path) == 3


@pytest.mark.parametrize('name', FILES)
def test_fuzz_a_file_of_shards(tmp_path, name):
    contents = {'index.json': lambda random: spoiled_file(random, INDEX),
                'classes.json': lambda random: spoiled_file(random, CLASSES),
                'pictures.csv': lambda random: spoiled_file(random, TABLE, as_csv, odd_text),
                'chunk-0-0.bin': lambda random: edited(random, SHARD)}

    @cases(100)
    def check(random):
        write(tmp_path, **{name: contents[name](random)})
        read_or_refuse(tmp_path)

    check()


@pytest.mark.parametrize('what', STRANGE)
@pytest.mark.parametrize('name', FILES)
def test_what_is_no_file_is_not_waited_for(tmp_path, name, what):
    write(tmp_path)
    put_strange(tmp_path / name, what)
    with not_waited_for():
        assert read_or_refuse(tmp_path) is None


@pytest.mark.parametrize('classes', [['a', 'a', 'b'], ['b', 'a'], ['a', 'b', 5], {'a': 1}, 'ab', ['', 'a', 'b']])
def test_classes_are_a_sorted_list_without_repetitions(tmp_path, classes):
    write(tmp_path, **{'classes.json': json.dumps(classes).encode()})
    assert read_or_refuse(tmp_path) is None
