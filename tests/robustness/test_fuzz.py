"""Anything at all in place of an image, a checkpoint or a table leads to a result or to one line, and to nothing else:
no other file is touched, and neither memory nor time is without bounds.
"""
import contextlib
import copy
import io
import json
import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import numpy as np
import odd_pictures
import pytest
import torch
from fuzzing import (
    STRANGE,
    as_csv,
    as_lines,
    cases,
    check_line,
    confined,
    edited,
    not_waited_for,
    odd_file,
    odd_text,
    odd_value,
    places_in,
    put_strange,
    spoiled,
    spoiled_file,
)
from helpers import TINY, build, configure, draw_folder, files_below, read_json, run, tiny_volo
from PIL import Image
from safetensors.torch import save as as_safetensors

from common.data import cache, transforms
from common.data.cache import ImageCache
from common.data.images import BadImage, open_image
from common.data.split import DECIDING, SPLIT_COLUMNS, describe_draw, keep_absent, read_sides, read_split_settings
from common.evaluation.predictor import Predictor, role_in_training
from common.reporting.page import curve_sections, headline_tiles, making, report_sections, write_page
from common.runtime.errors import UserError
from common.runtime.files import write_csv
from common.training import checkpoint, choices, run_length
from common.training.log import best_of, out_of_patience, print_result
from common.training.page import RunPage, find_twins
from common.training.setup import weights_of_resumed
from models import WeightsError, load_weights, normalisation_of, read_file

GOOD_IMAGES = sorted(odd_pictures.good_pictures().items())
BEGINNINGS = [b'', b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n', b'GIF89a', b'II*\0', b'RIFF\0\0\0\0WEBP', b'BM', b'8BPS',
              b'DDS ', b'P6 3 3 255\n', b'P5 9 9 255 ', b'P4 8 9\n', b'\0\0\0\x0cjP  ', b'icns', b'\0\0\1\0',
              b'\0\0\0\x1cftypavif', b'qoif\0\0\0\2\0\0\0\2\3\0', b'\0\0\2' + bytes(9) + b'\3\0\2\0\x18\0']

NET = tiny_volo(img_size=32)
TRANSFORM = {'img_size': [32, 32], 'mean': [.5] * 3, 'std': [.2] * 3, 'interpolation': 'bilinear', 'crop': None}
CHECKPOINT = {
    'format': checkpoint.FORMAT, 'model': 'volo_d1', 'model_kwargs': TINY, 'classes': list('abcde'),
    'transform': TRANSFORM, 'state_dict': NET.state_dict(), 'amp_dtype': None, 'best': {'temperature': 1.5},
    'settings': {'DATA_DIR': 'data', 'VIEW': 'upright'},
    'outliers': {'mean': torch.zeros(48), 'precision': torch.eye(48), 'share': torch.tensor(0.5),
                 'squares': torch.arange(9.)}}
PLACES = places_in({**CHECKPOINT, 'state_dict': None}) + [
    ('model_kwargs', key) for key in ('num_classes', 'mlp_ratio', 'drop_rate', 'new')] + [
    ('state_dict', key) for key in ('head.weight', 'pos_embed', 'new')]
PLAUSIBLE = [torch.zeros(0), torch.ones(5, 48), torch.ones(2, 2, dtype=torch.int8).to_sparse(), [48, 32], 0.5, 1.15,
             [0.1, 0.2, 0.3], 'bicubic', 'resnet18', (1, 1, 1, 1, 0, 0), (9, 1, 1, -9), (24, 48), (2, 2), 16, True,
             torch.tensor(255, dtype=torch.uint8), torch.tensor(-1.), torch.tensor(1j), torch.tensor(float('nan')),
             torch.zeros(3, device='meta'), torch.zeros(1).expand(2 ** 20), torch.zeros(5, 48).long(), [2 ** 14] * 2,
             torch.zeros(1, 4, 4, 48).long(), torch.full((5, 48), float('inf'))]


def junk(random):
    """Anything that a checkpoint can hold."""
    return odd_value(random, PLAUSIBLE)


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    """A path to write to."""
    return tmp_path_factory.mktemp('fuzz') / 'x.pth'


# ---- images ----------------------------------------------------------------------------------------------------------

@cases(100)
def test_edited_images(file, random):
    _, content = random.choice(GOOD_IMAGES)
    open_or_refuse(file, edited(random, content), random.choice((None, 16, 500)))


@cases(100)
def test_invented_images(file, random):
    open_or_refuse(file, random.choice(BEGINNINGS) + random.randbytes(random.randrange(400)), None)


def open_or_refuse(file, content, at_least):
    file.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            image = open_image(file, at_least)
        except BadImage as error:
            assert str(error).startswith(f'{file}: not a readable image (')
        else:
            assert image.mode == 'RGB' and min(image.size) > 0


# ---- best.pth, and files of weights ----------------------------------------------------------------------------------

@cases(100)
def test_changed_best_pth(file, random):
    content = spoiled(random, CHECKPOINT, PLACES, junk)
    with mock.patch('common.evaluation.predictor.read_file', lambda path: content):
        classify_or_refuse(file)


@cases(100)
def test_edited_best_pth(file, good_best_pth, random):
    file.write_bytes(edited(random, good_best_pth))
    classify_or_refuse(file)


def classify_or_refuse(file):
    """Do what test.py does with a checkpoint; what is accepted must also classify an image."""
    with warnings.catch_warnings(), confined(file.parent):
        warnings.simplefilter('ignore')
        try:
            predictor = Predictor(file, use_gpu=False)
            [found] = predictor([Image.new('RGB', (40, 30))])
        except UserError as error:
            check_line(error)
            return
        assert found.label in predictor.classes and 0 <= found.certainty <= found.confidence <= 1
        role_in_training('data/val', predictor.members[0].saved)


@pytest.fixture(scope='module')
def good_best_pth():
    """The bytes of the file."""
    content = io.BytesIO()
    torch.save(CHECKPOINT, content)
    return content.getvalue()


def test_the_whole_best_pth_is_accepted(file):
    torch.save(CHECKPOINT, file)
    [found] = Predictor(file, use_gpu=False)([Image.new('RGB', (40, 30))])
    assert found.label in 'abcde'


OTHER_NET = tiny_volo(img_size=64)
FEW_WEIGHTS = {name: tensor for name, tensor in NET.state_dict().items() if 'network' not in name}
WEIGHTS = {'state_dict': FEW_WEIGHTS, 'transform': TRANSFORM}


@cases(100)
def test_changed_weights(file, random):
    """PRETRAINED: they fit the network, or there is one line."""
    content = spoiled(random, WEIGHTS, places_in(WEIGHTS, 2), junk)
    if isinstance(content.get('state_dict'), dict):
        content['state_dict'] = {**NET.state_dict(), **content['state_dict']}
    load_or_refuse(content)


@cases(100)
def test_edited_safetensors(file, random):
    metadata = random.choice((odd_file(random), json.dumps(TRANSFORM))).encode(errors='backslashreplace').decode()
    content = as_safetensors(FEW_WEIGHTS, {'preprocessing': metadata})
    file = file.with_suffix('.safetensors')
    file.write_bytes(edited(random, content) if random.random() < 0.7 else content)
    load_or_refuse(file)


def load_or_refuse(file):
    """Load a file, or what it holds, as PRETRAINED does."""
    with warnings.catch_warnings(), confined(*([file.parent] if isinstance(file, Path) else [])):
        warnings.simplefilter('ignore')
        try:
            content = read_file(file) if isinstance(file, Path) else file
            normalisation_of(content)
            load_weights(OTHER_NET, content)
        except WeightsError as error:
            check_line(error)


# ---- last.pth and report.json ----------------------------------------------------------------------------------------

class Resumable(NamedTuple):
    """What a resumed run has before its first update."""
    folder: Path
    file: bytes    # last.pth
    content: dict  # of that
    auto: object   # settings, all 'auto' that can be
    cfg: object
    data: object
    state: object

    def __repr__(self):  # what hypothesis prints of every example
        return 'resumable'


@pytest.fixture(scope='module')
def resumable(tmp_path_factory):
    """A run that was saved in its second epoch, after one update."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp('resumable')
        patch.chdir(folder)
        draw_folder(folder / 'data/train', {'a': 4, 'b': 4})
        draw_folder(folder / 'data/val', {'a': 2, 'b': 2})
        run(epochs=1, optimizer='adamw', output_dir='out')
        content = torch.load('out/last.pth', weights_only=True)
        content['progress'].update(updates=1, images=4, seconds=1.)
        torch.save(content, 'out/last.pth')
        cfg, data, state = build(epochs=2, optimizer='adamw', output_dir='out')
        auto = configure(**dict.fromkeys((name.lower() for name in choices.CHOSEN), 'auto'))
        yield Resumable(folder, Path('out/last.pth').read_bytes(), content, auto, cfg, data, state)


@cases(40)
def test_changed_last_pth(resumable, random):
    """A resumed run goes on from it, or ends with a line; nothing but the folder of the run is touched."""
    content = resumable.content
    places = places_in({key: value for key, value in content.items() if 'state_dict' not in key}) + [
        ('state_dict', 'head.weight'), ('state_dict_ema', 'pos_embed'), ('state_dict', 'new'), ('state_dict_ema',)]
    content = spoiled(random, content, places, junk)
    with mock.patch('common.evaluation.predictor.read_file', lambda path: content), \
            mock.patch.object(checkpoint, 'is_whole', lambda path: True):
        resume_or_refuse(resumable)


@cases(20)
def test_edited_last_pth(resumable, random):
    content = edited(random, resumable.file)
    (resumable.folder / 'out/last.pth').write_bytes(content)
    resume_or_refuse(resumable)


def names_below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob('*')} - {'report.html'}


def resume_or_refuse(resumable):
    """Do what train.py does with a last.pth until the first update is over, and what it writes after an epoch. Return
    whether it was accepted.
    """
    folder, _, _, _, cfg, data, state = resumable
    state = copy.deepcopy(state)  # as in a new process: what one file brings along is not there for the next
    out = folder / 'out'
    before = names_below(folder)
    with warnings.catch_warnings(), confined(folder):
        warnings.simplefilter('ignore')
        try:
            saved = checkpoint.find_saved(True, out)
            checkpoint.is_complete(saved, 2, None, None)
            choices.choose_settings(resumable.auto, weights_of_resumed(saved).provenance, 8, 2, saved)
            checkpoint.check_resume(cfg, data, saved)
            checkpoint.check_fits(saved, state)
        except UserError as error:
            check_line(error)
            return False
        try:
            state.load_state_dict(saved)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):  # what train.py makes a line of
            return False
        for parameter in state.net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        state.optimizer.step()
        state.margins.suspects()
        clock = run_length.Clock(saved['elapsed'])
        for _ in range(3):
            clock.add(1.)
        minutes = saved['settings']['TIME_BUDGET'] or 1.
        plan = run_length.fit_time_budget(state.plan, minutes, clock, saved, lambda: None)
        run_length.revise(plan, minutes, clock, 3)
        plan.share(1)
        history = [*saved['history'], {**resumable.content['history'][0], 'epoch': len(saved['history']) + 1}]
        best_of(history)
        out_of_patience(history, 1, 'acc1')
        print_result(history, 'acc1', 4)
        write_csv(out / 'log.csv', history)
        with contextlib.suppress(UserError), making(out / 'report.html'):
            curve_sections(history)
    assert names_below(folder) == before
    return True


def test_the_whole_last_pth_is_accepted(resumable):
    torch.save(resumable.content, resumable.folder / 'out/last.pth')
    assert resume_or_refuse(resumable)


@cases(40)
def test_changed_report_json(resumable, random):
    """Of a report.json train.py makes a page, or there is one line, and no other file."""
    folder = resumable.folder
    content = spoiled_file(random, read_json(folder / 'out/report.json'))
    before = names_below(folder)
    with confined(folder):
        try:
            with making(folder / 'report.html'):
                report = json.loads(content)
                sections = report_sections(report, lambda file: '')
                write_page(folder / 'report.html', 'title', 'subtitle', headline_tiles(report, 'note'), sections)
        except UserError as error:
            check_line(error)
    assert names_below(folder) == before


# ---- tables and other small files ------------------------------------------------------------------------------------

SETTINGS = {**dict.fromkeys(DECIDING), 'VAL_RATIO': 0.3, 'SEED': 1}
MANIFEST = {'made_by': 'makedata.py', 'settings': SETTINGS, 'shards': ['train/x.bin']}
TABLE = [
    list(SPLIT_COLUMNS),
    ['train/a/0.png', 'data1/a/0.png', 'a', 'train', '0', '0' * 64],
    ['val/b/1.png', 'data1/b/1.png', 'b', 'val', '0', '1' * 64],
    ['test/a/2.png', 'data1/a/2.png', 'a', 'test', '2', '2' * 64]]
ABSENT = [['sha256', 'side'], ['3' * 64, 'val']]


@pytest.fixture(scope='module')
def divided(tmp_path_factory):
    """A folder with the listing of a split in data/ and files of it."""
    folder = tmp_path_factory.mktemp('divided')
    for name, *_ in TABLE[1:]:
        (folder / 'data' / name).parent.mkdir(parents=True)
        (folder / 'data' / name).write_text(name)
    return folder


def write_listing(folder, **contents):
    """Write split.json, split.csv and absent.csv, those that are not given as they should be."""
    good = {'split.json': json.dumps(MANIFEST), 'split.csv': as_csv(TABLE), 'absent.csv': as_csv(ABSENT)}
    for name, text in good.items():
        (folder / 'data' / name).write_bytes(text.encode())
    for name, content in contents.items():
        (folder / 'data' / name.replace('_', '.')).write_bytes(content)


def divide_or_refuse(folder):
    """Do what makedata.py and train.py do with the listing of a split; nothing in the folder is changed."""
    before = files_below(folder / 'data')
    new = folder / 'new'
    new.mkdir(exist_ok=True)
    with confined(folder):
        find_twins(folder / 'data')
        describe_draw(read_split_settings(folder / 'data'))
        try:
            earlier = read_sides(folder / 'data', SETTINGS)
        except UserError as error:
            check_line(error)
            earlier = None
        if earlier is not None:
            keep_absent(new, SimpleNamespace(sha256=np.array([b'0' * 64])), folder / 'data', earlier)
    assert files_below(folder / 'data') == before
    return earlier


def test_the_whole_listing_is_accepted(divided):
    write_listing(divided)
    assert len(divide_or_refuse(divided)) == 4
    assert (divided / 'new/absent.csv').read_text().count('\n') == 4  # with those of split.csv that are not there


@cases(100)
def test_changed_split_csv(divided, random):
    write_listing(divided, split_csv=spoiled_file(random, TABLE, as_csv, odd_text))
    divide_or_refuse(divided)


@cases(100)
def test_changed_split_json(divided, random):
    write_listing(divided, split_json=spoiled_file(random, MANIFEST))
    divide_or_refuse(divided)


@cases(100)
def test_changed_absent_csv(divided, random):
    write_listing(divided, absent_csv=spoiled_file(random, ABSENT, as_csv, odd_text))
    divide_or_refuse(divided)


MEASURED = {'data_dir': 'data1', 'classes': ['a', 'b'], 'images': 9, 'mean': [0.5] * 3, 'std': [0.2] * 3,
            'pixel_mean': [0.5] * 3, 'pixel_std': [0.2] * 3, 'left_out': [], 'computed_at': '', 'seconds': 0.1}


@cases(100)
def test_changed_mean_std_json(file, random):
    (file.parent / 'mean_std.json').write_bytes(spoiled_file(random, MEASURED))
    normalise_or_refuse(file.parent)


def normalise_or_refuse(folder):
    with confined(folder), mock.patch.object(transforms, 'MEAN_STD_FILE', str(folder / 'mean_std.json')):
        try:
            mean, std = transforms.find_normalisation('data', None, ['a', 'b'])
        except UserError as error:
            check_line(error)
        else:
            assert transforms.are_mean_and_std(mean, std)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """A folder with two images, and their paths."""
    folder = tmp_path_factory.mktemp('pictures')
    paths = [str(folder / f'{number}.png') for number in range(2)]
    for number, path in enumerate(paths):
        Image.new('RGB', (9, 9), (number, 0, 0)).save(path)
    return folder, paths


@cases(40)
def test_changed_cache(pictures, random):
    """The images are read, from the cache or again."""
    where = random.choice(('disk', None))
    length = random.choice((0, 1, 243, 486, 1000))
    folder, paths = pictures
    stamps = [os.stat(path) for path in paths]
    lines = [[path, found.st_size, found.st_mtime_ns] for path, found in zip(paths, stamps, strict=True)]
    if where == 'disk':
        lines = [[path, row, *rest, None] for row, (path, *rest) in enumerate(lines)]
    content = spoiled_file(random, lines, as_lines)
    with mock.patch.object(cache, 'CACHE_FOLDER', folder / '.cache'):
        for path in (folder / '.cache').glob('*'):
            path.unlink()
        ImageCache(lambda image: image, (9, 9), 9).load(paths, where)
        for path in (folder / '.cache').glob('*'):
            if path.suffix == '.pictures':
                path.write_bytes(bytes(length))
            elif path.suffix != '.lock':
                path.write_bytes(content)
        with confined(folder):
            images = ImageCache(lambda image: image, (9, 9), 9)
            assert images.load(paths, where) == {}
            for path in paths:
                assert images(path).size == (9, 9)


def test_very_many_entries(divided):
    """What is long is read, or refused, in the memory that it takes: a million in `make fuzz`."""
    million = 10 ** 6 if int(os.environ.get('FUZZ', 0)) > 1000 else 10 ** 4
    for names in (['a'] * million, [[]] * million, {str(number): {} for number in range(million)}):
        write_listing(divided, split_json=json.dumps({**MANIFEST, 'shards': names, 'more': names}).encode())
        divide_or_refuse(divided)
        (divided / 'mean_std.json').write_text(json.dumps({**MEASURED, 'classes': names, 'mean': names}))
        normalise_or_refuse(divided)
    for table in (b'file,' * million, b'file\n' * million, b'"' + b'x' * million,
                  b'file,side\n' + b'a,train\n' * million):
        write_listing(divided, split_csv=table)
        divide_or_refuse(divided)


# ---- what is no file -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('what', STRANGE)
@pytest.mark.parametrize('name', ['split.json', 'split.csv', 'absent.csv', 'mean_std.json'])
def test_what_is_no_file_in_place_of_a_table(tmp_path, what, name):
    (tmp_path / 'data').mkdir()
    write_listing(tmp_path)
    path = tmp_path / ('data' if name != 'mean_std.json' else '') / name
    put_strange(path, what)
    with not_waited_for():
        divide_or_refuse(tmp_path)
        normalise_or_refuse(tmp_path)


@pytest.mark.parametrize('what', STRANGE)
@pytest.mark.parametrize('name', ['last.pth', 'report.json'])
def test_what_is_no_file_in_place_of_one_of_a_run(resumable, tmp_path, what, name):
    """In place of last.pth: the one before it is taken."""
    torch.save(resumable.content, tmp_path / 'last_before.pth')
    torch.save(resumable.content, tmp_path / 'last.pth')
    put_strange(tmp_path / name, what)
    page = RunPage({'settings': {}}, resumable.state, resumable.data, tmp_path)
    with not_waited_for(), confined(tmp_path):
        assert checkpoint.find_saved('auto', tmp_path)['fingerprint'] == resumable.content['fingerprint']
        with pytest.raises(UserError) as error, making(tmp_path / 'report.html'):
            page.write([])
        check_line(error.value)


@pytest.mark.parametrize('what', STRANGE)
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_what_is_no_file_in_place_of_weights(tmp_path, what, suffix):
    put_strange(tmp_path / f'best{suffix}', what)
    with not_waited_for(), confined(tmp_path), pytest.raises(UserError, match='no such file'):
        Predictor(tmp_path / f'best{suffix}')


@pytest.mark.parametrize('what', STRANGE)
@pytest.mark.parametrize('where', ['disk', None])
def test_what_is_no_file_in_place_of_a_cache(pictures, tmp_path, monkeypatch, what, where):
    """It is replaced, or there is one line."""
    _, paths = pictures
    monkeypatch.chdir(tmp_path)
    ImageCache(lambda image: image, (9, 9), 9).load(paths, where)
    for path in Path('.cache').glob('*'):
        if path.suffix != '.lock':
            put_strange(path, what)
    with not_waited_for(), confined(tmp_path, Path(paths[0]).parent):
        try:
            assert ImageCache(lambda image: image, (9, 9), 9).load(paths, where) == {}
        except UserError as error:
            check_line(error)
