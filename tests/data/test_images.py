"""common/data/images.py and datasets.py: one opener for every picture, class folders, and the order of an epoch."""
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT, draw_folder
from PIL import Image

from common.data import images
from common.data.datasets import ImageFolder, SeededImageFolder, open_split
from common.data.folders import is_image, list_images
from common.data.images import BadImage, open_image
from common.data.loaders import EpochSampler
from common.runtime.errors import UserError


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
    image = open_image(tmp_path / 'x.tif')
    assert image.mode == 'RGB' and image.size == (8, 8)
    assert mode == 'LAB' or image.getpixel((3, 3)) == ((0, 135, 0) if mode == 'YCbCr' else (255, 255, 255))


@pytest.mark.parametrize('content', [b'', b'hello', b'\x89PNG\r\n\x1a\n' + b'x' * 50])
def test_bad_files_are_named(tmp_path, content):
    path = tmp_path / 'bad.jpg'
    path.write_bytes(content)
    with pytest.raises(BadImage, match=r'bad\.jpg'):
        open_image(path)


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
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0 and not {'torch', 'sklearn', 'matplotlib'} & set(done.stdout.split())


def test_which_files_count():
    assert all(map(is_image, ('a.jpg', 'A.JPG', 'b.Jpeg', 'x.png', 'x.webp', 'x.tiff', 'x.bmp', 'x.gif')))
    assert not any(map(is_image, ('.a.jpg', 'a.txt', 'a', 'a.eps', 'a.pdf', 'Thumbs.db', '.DS_Store')))


def test_listing_is_sorted_and_recursive(tmp_path):
    draw_folder(tmp_path, {'b': 2, 'a/deep': 1})
    assert [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)] == [
        'a/deep/000.png', 'b/000.png', 'b/001.png']


def test_hidden_folders_and_loops_are_not_entered(tmp_path):
    draw_folder(tmp_path, {'a': 1, 'a/.thumbnails': 1, 'a/__MACOSX': 1, 'elsewhere': 2})
    (tmp_path / 'a' / 'more').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'a' / 'again').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'a' / 'round').symlink_to(tmp_path / 'a')
    expected = ['000.png', 'again/000.png', 'again/001.png']
    assert [path.relative_to(tmp_path / 'a').as_posix() for path in list_images(tmp_path / 'a')] == expected
    found = ImageFolder(tmp_path / 'a' / '..', classes=['a', 'elsewhere'])
    assert found.targets == [0, 0, 0, 1, 1]


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
    with pytest.raises(UserError, match='no pictures in a: add some'):
        ImageFolder(tmp_path / 'val', classes=['a', 'b'])
    val = ImageFolder(tmp_path / 'val', classes=['a', 'b'], allow_empty=True)
    assert val.targets == [1]
    (tmp_path / 'val' / 'c').mkdir()
    with pytest.raises(UserError, match='c is extra'):
        ImageFolder(tmp_path / 'val', classes=['a', 'b'], allow_empty=True)


def test_an_epochs_order_follows_from_seed_and_epoch():
    sampler, other = EpochSampler(20, 1), EpochSampler(20, 2)
    first = list(sampler)
    assert sorted(index for index, _ in first) == list(range(20)) and first == list(sampler) and first != list(other)
    sampler.epoch = 1
    assert first != list(sampler)


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
