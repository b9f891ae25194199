"""Anything at all in place of an image or a checkpoint leads to a result or to the documented error, nothing else."""
import contextlib
import json
import warnings
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import odd_pictures
import pytest
import torch
from fuzzing import MANY, NUMBERS, SOME, TEXTS, changed, places_in, write_odd
from helpers import TINY, build, draw_folder, files_below, read_json, run, tiny_volo
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from common.data import transforms
from common.data.cache import ImageCache, read_index
from common.data.images import BadImage, open_image
from common.data.split import read_sides
from common.data.transforms import Transform, eval_transform, fit
from common.reporting.page import headline_tiles, making, report_sections, write_page
from common.runtime.errors import UserError
from common.training import checkpoint, run_length
from common.training.log import best_of
from common.training.page import find_twins
from models import WeightsError, check_saved, restore_model

GOOD_IMAGES = sorted(odd_pictures.good_pictures().items())
BEGINNINGS = [b'', b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n', b'GIF89a', b'II*\0', b'RIFF\0\0\0\0WEBP', b'BM', b'8BPS',
              b'DDS ', b'P6 3 3 255\n', b'P5 9 9 255 ', b'P4 8 9\n', b'\0\0\0\x0cjP  ', b'icns', b'\0\0\1\0',
              b'\0\0\0\x1cftypavif', b'qoif\0\0\0\2\0\0\0\2\3\0', b'\0\0\2' + bytes(9) + b'\3\0\2\0\x18\0']
EDITS = st.lists(st.tuples(st.floats(0, 1), st.sampled_from(['write', 'cut', 'insert', 'double', 'end']),
                           st.binary(min_size=1, max_size=8)), min_size=1, max_size=6)

TRANSFORM = {'img_size': [32, 32], 'mean': [.5] * 3, 'std': [.2] * 3, 'interpolation': 'bilinear', 'crop': None}
CHECKPOINT = {'format': checkpoint.FORMAT, 'model': 'volo_d1', 'model_kwargs': TINY, 'classes': list('abcde'),
              'transform': TRANSFORM, 'state_dict': tiny_volo(img_size=32).state_dict()}
PLACES = [(key,) for key in CHECKPOINT] + [('transform', key) for key in TRANSFORM] + [
    ('model_kwargs', key) for key in (*TINY, 'num_classes', 'mlp_ratio', 'drop_rate', 'new')] + [
    ('state_dict', key) for key in ('head.weight', 'pos_embed', 'new')] + [
    ('classes', 2), ('transform', 'mean', 1), ('transform', 'img_size', 0)]
PLAUSIBLE = [torch.zeros(0), torch.ones(5, 48), torch.ones(2, 2, dtype=torch.int8).to_sparse(), [48, 32], 0.5, 1.15,
             [0.1, 0.2, 0.3], 'bicubic', 'resnet18', (1, 1, 1, 1, 0, 0), (9, 1, 1, -9), (24, 48), (2, 2), 16, True]
JUNK = st.recursive(st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=9), st.binary(max_size=9),
                              st.sampled_from(PLAUSIBLE)),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
                    max_leaves=5)

PLAIN_JUNK = st.recursive(st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=9)),
                          lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
                          max_leaves=5)


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    """A path to write to."""
    return tmp_path_factory.mktemp('fuzz') / 'x.pth'


def edited(content, edits):
    """The bytes after some edits, each (place from 0 to 1, kind, new bytes)."""
    content = bytearray(content)
    for place, kind, new in edits:
        at = int(place ** 2 * len(content))  # more of them near the beginning, where the headers are
        if kind == 'write':
            content[at:at + len(new)] = new
        elif kind == 'cut':
            del content[at:at + new[0]]
        elif kind == 'insert':
            content[at:at] = new
        elif kind == 'double':
            content[at:at] = content[at:at + new[0]]
        else:
            del content[at:]
    return bytes(content)


@MANY
@given(image=st.sampled_from(GOOD_IMAGES), edits=EDITS, at_least=st.sampled_from([None, 16, 500]))
def test_edited_images(file, image, edits, at_least):
    open_or_refuse(file, edited(image[1], edits), at_least)


@MANY
@given(beginning=st.sampled_from(BEGINNINGS), content=st.binary(max_size=400))
def test_invented_images(file, beginning, content):
    open_or_refuse(file, beginning + content, None)


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


@MANY
@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), JUNK), min_size=1, max_size=3))
def test_changed_checkpoints(file, changes):
    content = CHECKPOINT
    for place, value in changes:
        content = changed(content, place, value)
    torch.save(content, file)
    load_or_refuse(file)


@MANY
@given(edits=EDITS)
def test_edited_checkpoints(file, edits):
    torch.save(CHECKPOINT, file)
    file.write_bytes(edited(file.read_bytes(), edits))
    load_or_refuse(file)


def load_or_refuse(file):
    """Load a checkpoint as test.py does; what is accepted must also classify an image."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')
        try:
            saved = checkpoint.load(file)
            check_saved(saved)
            net = restore_model(saved).eval()
        except (UserError, WeightsError) as error:
            assert '\n' not in str(error).strip()
            return
        transform = Transform.from_dict(saved['transform'])
        image = eval_transform(transform)(fit(transform)(Image.new('RGB', (40, 30))))
        assert net(image[None]).shape == (1, len(saved['classes']))


def test_the_whole_checkpoint_is_accepted(file):
    torch.save(CHECKPOINT, file)
    check_saved(checkpoint.load(file))


class Resumable(NamedTuple):
    """What a resumed run has before its first update."""
    folder: Path
    content: dict  # of last.pth
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
        cfg, data, state = build(epochs=2, optimizer='adamw', output_dir='out')
        yield Resumable(folder, content, cfg, data, state)


@settings(SOME, phases=(Phase.explicit, Phase.generate))
@given(drawn=st.data())
def test_changed_last_pth(resumable, drawn):
    """A resumed run goes on from it, or ends with a line; nothing but the folder of the run is touched."""
    folder, content, cfg, data, state = resumable
    places = places_in({key: value for key, value in content.items() if 'state_dict' not in key}) + [
        ('state_dict', 'head.weight'), ('state_dict_ema', 'pos_embed'), ('state_dict', 'new'), ('state_dict_ema',)]
    for place, value in drawn.draw(st.lists(st.tuples(st.sampled_from(places), JUNK), min_size=1, max_size=3)):
        content = changed(content, place, value)
    resume_or_refuse(folder, content, cfg, data, state)


def resume_or_refuse(folder, content, cfg, data, state):
    """Do what train.py does with a last.pth until the first update is over."""
    out = folder / 'out'
    torch.save(content, out / 'last.pth')
    before = {name for name in files_below(folder) if name != 'out/last.pth'}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            saved = checkpoint.find_saved(True, out)
            checkpoint.is_complete(saved, 2, None, None)
            checkpoint.check_resume(cfg, data, saved)
            checkpoint.check_fits(saved, state)
        except UserError as error:
            assert '\n' not in str(error).strip()
            return
        try:
            state.load_state_dict(saved)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):  # what train.py makes a line of
            return
        for parameter in state.net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        state.optimizer.step()
        best_of(saved['history'])
        state.margins.suspects()
        run_length.Clock(saved['elapsed'])
        run_length.earlier_plan(saved, state.plan, 1.)
        run_length.Plan(**saved['plan']).share(1)
    assert {name for name in files_below(folder) if name != 'out/last.pth'} == before


def test_the_whole_last_pth_is_accepted(resumable):
    folder, content, cfg, data, state = resumable
    torch.save(content, folder / 'out/last.pth')
    saved = checkpoint.find_saved(True, folder / 'out')
    checkpoint.check_resume(cfg, data, saved)
    checkpoint.check_fits(saved, state)


@SOME
@given(drawn=st.data())
def test_changed_report(resumable, drawn):
    """Of a report.json train.py makes a page, or there is one line, and no other file."""
    folder = resumable[0]
    report = read_json(folder / 'out/report.json')
    changes = st.lists(st.tuples(st.sampled_from(places_in(report)), PLAIN_JUNK), min_size=1, max_size=3)
    for place, value in drawn.draw(changes):
        report = changed(report, place, value)
    before = set(files_below(folder)) - {'report.html'}
    try:
        with making(folder / 'report.html'):
            sections = report_sections(json.loads(json.dumps(report)), lambda file: '')
            write_page(folder / 'report.html', 'title', 'subtitle', headline_tiles(report, 'note'), sections)
    except UserError as error:
        assert '\n' not in str(error)
    assert set(files_below(folder)) - {'report.html'} == before


@MANY
@given(text=TEXTS)
def test_small_files(file, text):
    """The manifest of a split, its table, the list of readable files, the measured mean: what they may hold instead."""
    folder = file.parent
    (folder / 'data').mkdir(exist_ok=True)
    for path in (folder / 'data' / 'split.csv', folder / 'x.checked', folder / 'mean_std.json', folder / 'x.index'):
        write_odd(path, text)
    deciding = {'VAL_RATIO': 0.3, 'SEED': 1}
    for manifest in (text, json.dumps({'made_by': 'makedata.py', 'settings': deciding, 'shards': []})):
        write_odd(folder / 'data' / 'split.json', manifest)
        with contextlib.suppress(UserError):
            read_sides(folder / 'data', deciding)
        find_twins(folder / 'data')
    with contextlib.suppress(UserError), mock.patch.object(transforms, 'MEAN_STD_FILE', str(folder / 'mean_std.json')):
        transforms.find_normalisation('data', None, ['a', 'b'])
    image = folder / 'good.png'
    if not image.exists():
        Image.new('RGB', (9, 9)).save(image)
    assert ImageCache(lambda image: image, (9, 9), 9)._check([str(image)], folder / 'x.checked') == {}
    (folder / 'x.pictures').write_bytes(bytes(9 * 9 * 3))
    assert read_index(folder / 'x.pictures', (9, 9))[1] in (0, 1)
