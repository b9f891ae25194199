"""common/data/images.py and datasets.py: one opener for every image, image folders, and the order of an epoch."""
import math
import multiprocessing
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT, draw_folder
from odd_pictures import png, tiff
from PIL import Image

from common.data import images
from common.data.datasets import ImageFolder, SeededImageFolder, open_split
from common.data.images import BadImage, bad_image, open_image
from common.data.loaders import EpochSampler
from common.runtime.errors import UserError

RAMP = np.linspace(0, 4095, 64).round().astype(int).reshape(8, 8)  # of 12 bits
PACKED = np.packbits((RAMP.reshape(-1, 1) >> np.arange(11, -1, -1)) & 1).tobytes()


@pytest.fixture(autouse=True)
def nothing_warned_yet():
    images._has_warned[0] = 0


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new('RGB', (40, 20), 'red').save(tmp_path / 'x.jpg', exif=exif)
    assert open_image(tmp_path / 'x.jpg').size == (20, 40)


def test_sixteen_bits_are_scaled(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for suffix in ('.png', '.tif'):
        Image.fromarray(ramp).save(tmp_path / f'x{suffix}')
        pixels = np.asarray(open_image(tmp_path / f'x{suffix}'))
        assert pixels.shape == (16, 16, 3) and pixels.min() == 0 and pixels.max() == 255
        assert abs(pixels[..., 0].astype(int) - ramp // 257).max() <= 1


def open_bytes(folder, content):
    (folder / 'x.png').write_bytes(content)  # of whatever format
    return np.asarray(open_image(folder / 'x.png'))


@pytest.mark.parametrize('content', [
    tiff(RAMP, (8, 8), 16, {281: 4095}), tiff(PACKED, (8, 8), 12), tiff(RAMP // 16, (8, 8), 32, {281: 255}),
    tiff(RAMP, (8, 8), 32, {281: 4095, 339: 2}), png(RAMP, (b'sBIT', b'\x0c')),
    b'P5 8 8 4095\n' + RAMP.astype('>u2').tobytes()],
    ids=['12 in 16', '12 packed', '8 in 32', '12 in signed 32', 'sBIT', 'PGM'])
def test_grey_is_scaled_by_the_depth_that_the_file_states(tmp_path, capsys, content):
    found = open_bytes(tmp_path, content)
    assert found.min() == 0 and found.max() == 255 and not capsys.readouterr().out
    assert abs(found[..., 0] - RAMP // 16).max() <= 1


@pytest.mark.parametrize('scaled', [RAMP << 4, RAMP << 4 | RAMP >> 8, (RAMP * 65535 / 4095).round().astype(int)])
def test_significant_bits_that_were_scaled_to_sixteen_are_not_scaled_again(tmp_path, scaled):
    """As the PNG standard wants them; also the dark ones, which would be bright by the 12 bits."""
    for values in (scaled, scaled.clip(0, scaled[0, 3])):
        found = open_bytes(tmp_path, png(values, (b'sBIT', b'\x0c')))
        assert np.array_equal(found, open_bytes(tmp_path, png(values)))


def test_the_largest_value_of_one_picture_is_no_depth(tmp_path):
    """MaxSampleValue may be either; exposures would look the same."""
    values = RAMP * 8
    found = open_bytes(tmp_path, tiff(values, (8, 8), 16, {281: int(values.max())}))
    assert np.array_equal(found[..., 0], values // 257)


@pytest.mark.parametrize('content', [png(RAMP), tiff(RAMP, (8, 8), 16), tiff(RAMP, (8, 8), 32)])
def test_a_depth_that_no_file_states_is_asked_for_once(tmp_path, monkeypatch, capsys, content):
    assert open_bytes(tmp_path, content).max() == 15
    [line] = capsys.readouterr().out.splitlines()
    assert 'x.png is almost black' in line and 'BIT_DEPTH: int | None = 12' in line and 'images.py' in line
    open_bytes(tmp_path, content)
    assert not capsys.readouterr().out
    images._has_warned[0] = 0
    monkeypatch.setattr(images, 'BIT_DEPTH', 12)
    found = open_bytes(tmp_path, content)
    assert np.array_equal(found[..., 0], RAMP * 255 // 4095) and not capsys.readouterr().out


def test_pictures_without_light_and_those_of_a_sixteenth_of_the_range_are_not_reported(tmp_path, capsys):
    assert open_bytes(tmp_path, png(RAMP * 0)).max() == 0 and open_bytes(tmp_path, png(RAMP + 1)).max() == 15
    assert not capsys.readouterr().out


def test_values_above_white_are_reported(tmp_path, monkeypatch, capsys):
    """Unsigned 32 bits to their end, which Pillow takes for negative numbers."""
    content = tiff(RAMP * (2 ** 32 - 1) // 4095, (8, 8), 32)
    assert open_bytes(tmp_path, content)[0, 1:].min() == 255
    assert 'reach 4294967295, and white is 65535' in (out := capsys.readouterr().out) and 'None = 32' in out
    monkeypatch.setattr(images, 'BIT_DEPTH', 32)
    assert np.array_equal(open_bytes(tmp_path, content)[..., 0], RAMP * 255 // 4095)
    for wrong in (7, 4095, '12'):
        monkeypatch.setattr(images, 'BIT_DEPTH', wrong)
        with pytest.raises(UserError, match=r'BIT_DEPTH = .* in common/data/images\.py must be from 8 to 32') as error:
            open_bytes(tmp_path, content)
        assert error.type is UserError  # and no file is called unreadable for it


def test_floating_point_above_255_is_reported(tmp_path, monkeypatch, capsys):
    content = b'Pf 8 8 -1.0\n' + RAMP.astype('<f4').tobytes()
    assert np.median(open_bytes(tmp_path, content)) == 255
    assert 'partly cut to white: its grey values reach 4095, and white is 255' in capsys.readouterr().out
    monkeypatch.setattr(images, 'BIT_DEPTH', 12)
    found = open_bytes(tmp_path, content)[::-1, :, 0]  # the format begins with the lowest row
    assert np.array_equal(np.sort(found.ravel()), (RAMP * 255 / 4095).round().ravel())


@pytest.mark.parametrize('content', [png(np.dstack([RAMP] * 3)), tiff(np.dstack([RAMP] * 3), (8, 8), 16, channels=3)])
def test_colours_that_lie_in_the_lower_bits_are_reported(tmp_path, capsys, content):
    assert open_bytes(tmp_path, content).max() == 15
    assert 'x.png is almost black: of 16-bit colours' in capsys.readouterr().out


def test_colours_of_sixteen_bits_in_planes_are_refused(tmp_path):
    """Pillow would make noise of them."""
    planes = np.stack([RAMP * 16] * 3)
    with pytest.raises(BadImage, match='16-bit colours in separate planes'):
        open_bytes(tmp_path, tiff(planes, (8, 8), 16, {284: 2}, channels=3))


@pytest.mark.skipif('fork' not in multiprocessing.get_all_start_methods(), reason='processes share nothing here')
def test_a_warning_is_not_repeated_by_other_processes(tmp_path, capfd):
    (tmp_path / 'x.png').write_bytes(png(RAMP))
    for _ in range(2):
        worker = multiprocessing.get_context('fork').Process(target=open_image, args=(tmp_path / 'x.png',))
        worker.start()
        worker.join()
        assert worker.exitcode == 0
    open_image(tmp_path / 'x.png')
    assert capfd.readouterr().out.count('almost black') == 1


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P'])
def test_transparency_becomes_white(tmp_path, mode):
    image = Image.new('RGBA', (8, 8), (0, 0, 0, 0))
    (image if mode == 'RGBA' else image.convert(mode)).save(tmp_path / 'x.png')
    assert open_image(tmp_path / 'x.png').getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'CMYK', 'YCbCr', 'LAB', 'F'])
def test_every_mode_becomes_rgb(tmp_path, mode):
    white = Image.new('RGB', (8, 8), 'white')
    drawn = Image.new(mode, (8, 8)) if mode in ('LAB', 'CMYK', 'YCbCr') else white.convert('L').convert(mode)
    drawn.save(tmp_path / 'x.tif')
    try:
        Image.open(tmp_path / 'x.tif').load()
    except OSError as error:  # Pillow 12.3 with YCbCr
        pytest.skip(f'this Pillow does not read what it wrote: {error}')
    image = open_image(tmp_path / 'x.tif')
    assert image.mode == 'RGB' and image.size == (8, 8)
    assert mode == 'LAB' or image.getpixel((3, 3)) == ((0, 135, 0) if mode == 'YCbCr' else (255, 255, 255))


@pytest.mark.parametrize('content, reason', [
    (b'hello', 'the content is no image, or of a kind that Pillow cannot read'), (b'', 'an empty file'),
    (tiff(b'', (20_000, 20_000), 8), 'more pixels than the MAX_PIXELS of common/data/images.py'),
    (b'P5 8 8\x99 255\n', "damaged, ValueError: invalid literal for int() with base 10: b'8\\x99'")],
    ids=['text', 'empty', 'huge', 'number'])
def test_the_reason_is_one_plain_line(tmp_path, content, reason):
    """Neither the path again, nor a number of an error, nor the address of an object."""
    path = tmp_path / 'new\nline.png'
    path.write_bytes(content)
    with pytest.raises(BadImage) as error:
        open_image(path)
    assert str(error.value) == f'{tmp_path}/new\\nline.png: not a readable image ({reason})'


@pytest.mark.parametrize('error, reason', [
    (FileNotFoundError(2, 'No such file or directory', 'x.png'), 'No such file or directory'),
    (OSError('two\n lines\n'), 'two lines'), (AssertionError(), 'damaged, AssertionError'),
    (KeyError(3), 'damaged, KeyError: 3'), (SyntaxError('broken PNG file'), 'broken PNG file'),
    (OSError(), 'damaged, OSError')])
def test_the_reason_of_every_kind_of_error(error, reason):
    assert str(bad_image('x.png', error)) == f'x.png: not a readable image ({reason})'


def test_special_files_have_a_reason(tmp_path):
    (tmp_path / 'folder.png').mkdir()
    (tmp_path / 'nowhere.png').symlink_to('gone')
    for name, reason in (('folder', 'a folder, pipe or device, not a file'), ('nowhere', 'No such file or directory')):
        with pytest.raises(BadImage) as error:
            open_image(tmp_path / f'{name}.png')
        assert str(error.value) == f'{tmp_path}/{name}.png: not a readable image ({reason})'


def test_pillow_logs_nothing_beside_its_errors(tmp_path, caplog):
    (tmp_path / 'x.tif').write_bytes(tiff(RAMP, (8, 8), 16, {277: 65407}))
    with pytest.raises(BadImage):
        open_image(tmp_path / 'x.tif')
    assert not caplog.records


def test_truncated_pictures_are_bad(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / 'x.jpg')
    whole = (tmp_path / 'x.jpg').read_bytes()
    (tmp_path / 'x.jpg').write_bytes(whole[:len(whole) // 2])
    for at_least in (None, 8):
        with pytest.raises(BadImage, match=r'x\.jpg'):
            open_image(tmp_path / 'x.jpg', at_least)


def test_a_jpeg_is_decoded_no_larger_than_needed(tmp_path):
    """A quarter of the size here; the colours stay, and with `at_least` no side is smaller than it says."""
    pixels = np.zeros((480, 640, 3), np.uint8)
    pixels[:, :320] = 200, 40, 90
    Image.fromarray(pixels).save(tmp_path / 'x.jpg', quality=95)
    whole, part = open_image(tmp_path / 'x.jpg'), open_image(tmp_path / 'x.jpg', at_least=100)
    assert part.size == (160, 120) and open_image(tmp_path / 'x.jpg', at_least=481).size == (640, 480)
    small = np.asarray(whole.resize((32, 24), Image.Resampling.BOX), float)
    assert abs(np.asarray(part.resize((32, 24), Image.Resampling.BOX), float) - small).max() <= 3
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(pixels).save(tmp_path / 'x.jpg', exif=exif)
    assert open_image(tmp_path / 'x.jpg', at_least=100).size == (120, 160)


def test_the_scripts_that_need_no_pytorch_do_not_import_it():
    code = f'import sys; sys.path.insert(0, {str(ROOT)!r}); import mean_std, makedata; print(*sys.modules)'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0 and not {'torch', 'sklearn', 'matplotlib'} & set(result.stdout.split())


def test_one_class_is_nothing_to_learn(tmp_path):
    draw_folder(tmp_path / 'train', {'all': 3})
    (tmp_path / 'val').mkdir()
    with pytest.raises(UserError, match='has one class only, all'):
        open_split(tmp_path)


def test_more_pixels_than_memory(tmp_path, monkeypatch):
    """The header alone decides; Pillow's own limit would still allow twice as many."""
    Image.new('1', (300, 200)).save(tmp_path / 'x.png')
    monkeypatch.setattr(images, 'MAX_PIXELS', 60_000)
    assert open_image(tmp_path / 'x.png').size == (300, 200)
    monkeypatch.setattr(images, 'MAX_PIXELS', 59_999)
    with pytest.raises(BadImage, match=r'300x200: more than the MAX_PIXELS of common/data/images\.py'):
        open_image(tmp_path / 'x.png')


def test_image_folder_matches_classes_by_name(tmp_path):
    draw_folder(tmp_path / 'train', {'a': 2, 'b': 2})
    draw_folder(tmp_path / 'val', {'b': 1})
    (tmp_path / 'val' / '__MACOSX').mkdir()
    with pytest.raises(UserError, match='a is missing'):
        ImageFolder(tmp_path / 'val', classes=['a', 'b'])
    (tmp_path / 'val' / 'a').mkdir()
    with pytest.raises(UserError, match='no images in a: add some'):
        ImageFolder(tmp_path / 'val', classes=['a', 'b'])
    val = ImageFolder(tmp_path / 'val', classes=['a', 'b'], allow_empty=True)
    assert val.targets == [1]
    (tmp_path / 'val' / 'c').mkdir()
    with pytest.raises(UserError, match='c is extra'):
        ImageFolder(tmp_path / 'val', classes=['a', 'b'], allow_empty=True)


def test_an_epochs_order_follows_from_seed_and_epoch():
    sampler, other = EpochSampler(20, 5, 1), EpochSampler(20, 5, 2)
    first = list(sampler)
    assert sorted(index for batch in first for index, _ in batch) == list(range(20))
    assert first == list(sampler) and first != list(other)
    assert sampler.order() is sampler.order()  # every update asks for it, and of a million images it takes a while
    sampler.begin(epoch=0, skip=3)
    assert first[3:] == list(sampler)
    sampler.begin(epoch=1)
    assert first != list(sampler)


def test_the_usual_side_is_that_of_the_files(tmp_path):
    """The median of the shorter ones, among the files that can be read."""
    folder = draw_folder(tmp_path, {'a': 3, 'b': 3}, size=(30, 50))
    draw_folder(tmp_path / 'b', {'small': 3}, size=(20, 16))
    (folder / 'a' / 'bad.png').write_text('no image')
    assert ImageFolder(folder).usual_side() == 30
    for path in folder.rglob('*.png'):
        path.write_text('no image')
    assert ImageFolder(folder).usual_side() == math.inf


def test_a_samples_randomness_follows_from_its_seed_and_leaves_no_trace(tmp_path):
    dataset = SeededImageFolder(draw_folder(tmp_path, {'a': 2}), lambda image: (random.random(), torch.rand(1).item()))
    torch.manual_seed(0)
    random.seed(0)
    expected = torch.rand(1), random.random()
    torch.manual_seed(0)
    random.seed(0)
    one, again, another = dataset[0, 5], dataset[1, 5], dataset[0, 6]
    assert one == again != another
    assert expected == (torch.rand(1), random.random())
