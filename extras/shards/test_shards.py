"""Shards: the images of files, in any order, read by any number of processes."""
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import arguments_of, draw_folder, files_below, launch, read_rows, rows_of, run, split, untrained

import extras.shards
import makedata
import test
import train
from common import settings
from common.data import loaders
from common.data.datasets import SeededImageFolder, fingerprint, open_split
from common.data.images import BadImage
from common.data.loaders import EpochSampler, start_loader
from common.runtime.errors import Stopped, UserError
from common.training.step import UpdateMeter
from extras.shards import Shards
from extras.shards import writing as shards

pytest.importorskip('litdata')


@pytest.fixture
def sharded(tmp_path, monkeypatch):
    """A folder of pictures, data1, split twice: into the files of `files` and the small shards of `data`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shards, 'SHARD_BYTES', 8_000)
    monkeypatch.setattr(makedata, 'NEAR_DUPLICATES', False)
    draw_folder(tmp_path / 'data1', {'a': 30, 'b': 20, 'ü "x", \udce9': 12})
    assert split('--target-dir', 'files').returncode == 0
    assert split('--shards').returncode == 0
    return tmp_path


def test_the_same_split_and_the_same_pictures(sharded):
    assert sorted((row['file'], row['sha256']) for row in rows_of(sharded / 'data')) == sorted(
        (row['file'], row['sha256']) for row in rows_of(sharded / 'files'))
    names = {path.name for path in (sharded / 'data' / 'train').iterdir()}
    assert {'index.json', 'pictures.csv'} < names and len(names) > 5
    files, shards = open_split('files'), open_split('data')
    for of_files, of_shards in ((files.train, shards.train), (files.val, shards.val)):
        assert of_shards.classes == of_files.classes
        labels = {Path(path).relative_to('files'): target for path, target in of_files.samples}
        assert labels == {Path(path).relative_to('data'): target for path, target in of_shards.samples}
        for path, _ in of_shards.samples:
            there = Path('files', Path(path).relative_to('data'))
            assert of_shards.loader(path).tobytes() == of_files.loader(there).tobytes()
            assert of_shards.store.stamp(path)[0] == there.stat().st_size


def test_pictures_lie_in_random_order_and_each_shard_is_a_block(sharded):
    dataset = open_split('data').train
    blocks = dataset.blocks()
    assert (np.diff(blocks) >= 0).all() and blocks.max() > 3
    assert [*np.bincount(blocks)] == [shard['chunk_size'] for shard in json.loads(
        (sharded / 'data' / 'train' / 'index.json').read_text())['chunks']]
    assert len({*dataset.targets[:20].tolist()}) == 3
    left = [path for path, _ in dataset.samples[::2]]
    dataset.leave_out(left)
    assert (dataset.blocks() == blocks[1::2]).all()


def test_files_may_come_along(sharded):
    """As many to a block as there are pictures in a shard."""
    dataset = open_split('data').train
    of_shards = dataset.blocks()
    folder = draw_folder(sharded / 'more', {'x': 50})
    dataset.add((str(path), 1) for path in sorted(folder.rglob('*.png')))
    blocks = dataset.blocks()
    assert (blocks[:-50] == of_shards).all() and blocks[-50] == of_shards.max() + 1
    assert np.bincount(blocks)[blocks[-50]:-1].max() <= np.bincount(of_shards).max()
    path, _ = dataset.samples[-1]
    assert dataset.store.open(path).size == (24, 20) and dataset.store.stamp(path)[0] == Path(path).stat().st_size
    assert fingerprint(dataset) != fingerprint(open_split('data').train)
    with pytest.raises(BadImage, match='nowhere.png'):
        dataset.store.open('nowhere.png')


def test_an_epoch_takes_each_picture_once_and_few_shards_at_a_time(monkeypatch):
    monkeypatch.setattr(loaders, 'BLOCKS', 2)
    blocks = np.repeat(np.arange(10), 12)
    sampler = EpochSampler(120, 6, 1, blocks)
    epochs = []
    for epoch in range(2):
        sampler.begin(epoch)
        order = sampler.order()[:, 0]
        assert sorted(order) == list(range(120))
        assert all(len({*blocks[order[start:start + 24]]}) == 2 for start in range(0, 120, 24))
        assert all(len({*blocks[order[start:start + 12]]}) == 2 for start in range(0, 120, 24))  # mixed, too
        epochs.append(order)
    assert (epochs[0] != epochs[1]).any()


@pytest.mark.parametrize('workers', [0, 2])
def test_worker_processes_read_them(sharded, workers):
    open_split('data').train.loader(open_split('data').train.samples[0][0])  # this process has them open, too
    dataset = SeededImageFolder('data/train', lambda image: np.asarray(image).astype(int).sum())
    dataset[0, 0]
    loader = start_loader(dataset, workers, batch_sampler=EpochSampler(len(dataset), 4, 1, dataset.blocks()))
    sums = [value for batch, _ in loader for value in batch.tolist()]
    expected = [dataset[key][0] for batch in EpochSampler(len(dataset), 4, 1, dataset.blocks()) for key in batch]
    assert sums == expected


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system starts processes anew')
def test_a_forked_process_opens_them_itself(sharded):
    """The place in an open file would be shared."""
    store = open_split('data').train.store
    store.read(0)
    child = multiprocessing.get_context('fork').Process(
        target=lambda: (before := store.local.files[0], store.read(0), os._exit(store.local.files[0] is before)))
    child.start()
    child.join()
    assert child.exitcode == 0


def test_they_go_to_another_process(sharded):
    store = open_split('data').train.store
    path = store.all[3][0]
    assert pickle.loads(pickle.dumps(store)).open(path).tobytes() == store.open(path).tobytes()


@pytest.mark.parametrize('cache', ['disk', pytest.param('None', marks=pytest.mark.slow)])
def test_a_run_on_shards_goes_on_in_mid_epoch_with_two_processes(sharded, quick, monkeypatch, cache):
    """To what one process learns that was never stopped, but for rounding."""
    changes = {'cache': cache, 'batch_size': 6, 'lr': 1e-4, 'use_amp': 'false'}
    monkeypatch.setattr(train.devices, 'choose_device', lambda use_gpu: torch.device('cpu'))  # as in `launch`
    run(**changes)
    whole = torch.load('out/last.pth', weights_only=True)
    shutil.rmtree('out')
    real, calls = UpdateMeter.add, []

    def add(*arguments):
        calls.append(1)
        if len(calls) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(UpdateMeter, 'add', add)
        run(**changes)
    process = launch(2, 'train.py', *arguments_of(**changes, resume='true'))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    again = torch.load('out/last.pth', weights_only=True)
    assert again['history'][-1]['train_loss'] == pytest.approx(whole['history'][-1]['train_loss'], rel=1e-4)
    for name, tensor in whole['state_dict'].items():
        torch.testing.assert_close(again['state_dict'][name], tensor, rtol=2e-4, atol=2e-4, msg=name)


def test_predictions_of_shards_are_those_of_files(sharded):
    untrained('net.pth', classes=('a', 'b', 'ü "x", \udce9'))
    rows = []
    for folder in ('data', 'files'):
        test.main(settings.read(test, ['--checkpoint', 'net.pth', '--test-dir', f'{folder}/val', '--output-dir',
                                       f'{folder}-named', '--num-workers', '0']))
        rows.append(sorted(str({**row, 'modified_ns': 0}) for row in read_rows(sharded / f'{folder}-named')))
    assert rows[0] == rows[1] and len(rows[0]) == 19
    assert (sharded / 'data-named' / 'confusion.png').exists()


def test_a_class_without_a_picture_in_val_is_known_there(sharded):
    draw_folder(sharded / 'data1', {'one': 1}, seed=9)
    assert split('--shards').returncode == 0
    found = open_split('data')
    train_set, val_set = found.train, found.val
    assert train_set.classes == val_set.classes and 'one' in val_set.classes and len(val_set) == 19


def test_a_damaged_picture_in_a_shard_is_named(sharded):
    for path in Path('data1', 'a').iterdir():
        path.write_bytes(path.read_bytes()[:-60])
    assert split('--shards').returncode == 0
    dataset = open_split('data').train
    for path, target in dataset.samples:
        if dataset.classes[target] == 'a':
            with pytest.raises(BadImage, match='a/0[0-9]*.png: not a readable image'):
                dataset.loader(path)
        else:
            dataset.loader(path)


@pytest.mark.parametrize('damage, words', [
    (lambda folder: next(folder.glob('*.bin')).unlink(), 'make the shards again'),
    (lambda folder: shorten(next(folder.glob('*.bin'))), 'bin is truncated.: make the shards again'),
    (lambda folder: (folder / 'index.json').unlink(), 'make the shards again'),
    (lambda folder: (folder / 'index.json').write_text('[]'), 'make the shards again'),
    (lambda folder: (folder / 'index.json').write_text(
        '{"chunks": [], "config": {"data_format": ["bytes"]}}'), '0 images in index.json'),
    (lambda folder: (folder / 'classes.json').write_text('["a"]'), 'make the shards again'),
    (lambda folder: (folder / 'classes.json').write_text('7'), 'make the shards again'),
    (lambda folder: (folder / 'pictures.csv').write_text('file,class\n'), 'make the shards again'),
    (lambda folder: (folder / 'pictures.csv').write_text('file,class,bytes\na/x.png,a,10\n'), 'make the shards again'),
    (lambda folder: (folder / 'pictures.csv').write_text(
        (folder / 'pictures.csv').read_text(errors='replace').replace('file,', 'name,')), 'has not the columns'),
    (lambda folder: (folder / 'pictures.csv').write_text('file,class,bytes\na/x.png,a\n'), 'make the shards again'),
    (lambda folder: (folder / 'pictures.csv').write_text(f'file,class,bytes\na/x.png,a,{10 ** 30}\n'), 'bytes')])
def test_shards_that_are_not_whole(sharded, damage, words):
    damage(sharded / 'data' / 'train')
    with pytest.raises(UserError, match=words):
        store = Shards('data/train')
        for path, _ in store.all:
            store.open(path)


def shorten(file):
    file.write_bytes(file.read_bytes()[:-1])


class Command:
    """What runs a command when it is unpickled."""
    def __reduce__(self):
        return os.mkdir, ('ran',)


def test_items_that_litdata_would_unpickle_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = shards.cache_class()('theirs', chunk_bytes=2 ** 20)
    cache[0] = Command()
    cache.done()
    cache.merge()
    assert json.loads(Path('theirs/index.json').read_text())['config']['data_format'] == ['pickle']
    Path('theirs/classes.json').write_text('["a", "b"]')
    Path('theirs/pictures.csv').write_text('file,class,bytes\na/x.png,a,10\n')
    with pytest.raises(UserError, match='items are not the bytes of image files'):
        Shards('theirs')
    assert not Path('ran').exists()


def change_index(folder, **changes):
    """Change the configuration of shards, or, by 'filename' and the like, what is said of their first file."""
    index = json.loads((folder / 'index.json').read_text())
    for name, value in changes.items():
        entry = index['chunks'][0] if name in index['chunks'][0] else index['config']
        entry[name] = value
    (folder / 'index.json').write_text(json.dumps(index))


def test_an_index_that_makedata_would_not_write_is_refused(sharded):
    shutil.copytree('data/train', 'data/train/deep')
    shutil.copy('data/train/index.json', 'index.json')
    for changes in [
            {'data_format': ['pickle']}, {'data_format': 'bytes'}, {'data_format': ['bytes', 'pickle']},
            {'data_format': None}, {'compression': 'zstd'}, {'encryption': {'algorithm': 'fernet'}}, {'chunk_size': -1},
            {'chunk_size': 1.5}, {'filename': '../val/chunk-0-0.bin'}, {'filename': 'deep/chunk-0-0.bin'},
            {'filename': '/dev/zero'}, {'filename': '..'}, {'filename': ''}, {'filename': 7}, {'filename': None},
            {'filename': 'a\0b'}]:
        shutil.copy('index.json', 'data/train/index.json')
        Shards('data/train')
        change_index(sharded / 'data' / 'train', **changes)
        with pytest.raises(UserError, match='make the shards again'):
            Shards('data/train')


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='this system has no named pipes')
def test_a_pipe_is_not_waited_for(sharded):
    for name in ('chunk-0-0.bin', 'index.json', 'classes.json'):
        shutil.copytree('data/val', name)
        change_index(Path(name), chunk_bytes=0)
        Shards(name)
        Path(name, name).unlink()
        os.mkfifo(Path(name, name))
        with pytest.raises(UserError, match='make the shards again'):
            Shards(name)


def test_names_that_lead_out_of_the_folder_are_refused(sharded):
    table = sharded / 'data' / 'val' / 'pictures.csv'
    lines = table.read_bytes().splitlines(keepends=True)
    old = lines[1].partition(b',')[0]
    for name in ('../../x.png', '/etc/passwd', 'a/../../x.png', 'a//x.png', './x.png', 'a/', ''):
        table.write_bytes(lines[0] + name.encode() + lines[1][len(old):] + b''.join(lines[2:]))
        with pytest.raises(UserError, match='leads out of this folder'):
            Shards('data/val')


def test_a_shard_that_changes_later_is_no_image_and_not_waited_for(sharded):
    store = Shards('data/val')
    for content in (b'', b'\0' * 50_000, b'\xff' * 50_000):
        for file in store.files:
            Path('data/val', file).write_bytes(content)
        for path, _ in store.all:
            with pytest.raises(BadImage, match='not a readable image .*chunk-0-.*bin'):
                store.open(path)


def test_an_item_that_is_too_large_or_lies_elsewhere_is_not_read(sharded, monkeypatch):
    store = Shards('data/val')
    file = Path('data/val', store.files[0])
    with monkeypatch.context() as patch, pytest.raises(BadImage, match='does not lie where'):
        patch.setattr(extras.shards, 'MAX_BYTES', 10)
        store.open(store.all[0][0])
    content = bytearray(file.read_bytes())
    content[8:12] = (2 ** 32 - 1).to_bytes(4, 'little')  # where the first one ends
    file.write_bytes(content)
    with pytest.raises(BadImage, match='does not lie where'):
        store.open(store.all[0][0])


def test_a_thread_has_few_shards_open(sharded, monkeypatch):
    monkeypatch.setattr(extras.shards, '_MOST_OPEN', 2)
    store = Shards('data/train')
    assert len(store.files) > 3
    again = [store.read(number) for number in reversed(range(len(store.all)))][::-1]
    assert [store.read(number) for number in range(len(store.all))] == again
    assert len(store.local.files) == 2


def test_a_split_of_shards_is_replaced_and_foreign_files_are_not(sharded):
    before = files_below(sharded / 'data')
    assert split('--shards').returncode == 0
    assert files_below(sharded / 'data').keys() == before.keys()
    (sharded / 'data' / 'train' / 'mine.bin').write_text('precious')
    assert 'mine.bin was not put there' in split('--shards').stderr
    (sharded / 'data' / 'train' / 'mine.bin').unlink()
    assert split().returncode == 0 and (sharded / 'data' / 'train' / 'a').is_dir()
    assert Counter(row['side'] for row in rows_of(sharded / 'data')) == Counter(
        row['side'] for row in rows_of(sharded / 'files'))


def test_only_writing_needs_the_library(sharded, monkeypatch):
    for name in ('litdata', 'litdata.streaming'):
        monkeypatch.setitem(sys.modules, name, None)
    assert 'SHARDS needs another package: python -m pip install -U litdata' in split('--shards').stderr
    store = open_split('data').train.store
    assert len(store.read(0)) == store.sizes[0]
