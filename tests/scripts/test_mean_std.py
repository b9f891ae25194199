"""mean_std.py against the tutorial's loop and against plain NumPy."""
import ast
import contextlib
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT, draw_folder, run_script
from PIL import Image
from torchvision import datasets, transforms

import mean_std
from common import settings
from common.data.folders import list_images
from common.data.transforms import read_measured
from common.runtime.errors import UserError


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def measure(*arguments):
    """Run mean_std.py in this process; returns (what it prints, the content of mean_std.json)."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        mean_std.main(settings.read(mean_std, list(map(str, arguments))))
    with open('mean_std.json', encoding='utf-8') as file:
        return out.getvalue(), json.load(file)


def numpy_stats(folder):
    """((mean, std) of the per-image values, (mean, std) over all pixels), straight from the files."""
    pictures = [np.asarray(Image.open(path).convert('RGB')).reshape(-1, 3) / 255 for path in list_images(folder)]
    means = [pixels.mean(0) for pixels in pictures]
    stds = [pixels.std(0, ddof=1) for pixels in pictures]
    together = np.concatenate(pictures)
    return (np.mean(means, 0), np.mean(stds, 0)), (together.mean(0), together.std(0))


def test_get_mean_and_std_is_the_tutorials(tmp_path):
    dataset = datasets.ImageFolder(draw_folder(tmp_path, {'a': 3, 'b': 4}), transforms.ToTensor())
    images = torch.stack([image for image, _ in dataset])
    mean, std = mean_std.get_mean_and_std([path for path, _ in dataset.samples])
    np.testing.assert_allclose(mean, images.mean((2, 3)).mean(0), atol=1e-6)
    np.testing.assert_allclose(std, images.std((2, 3)).mean(0), atol=1e-6)


def check_against_numpy(folder, *arguments):
    printed, found = measure('--data-dir', folder, *arguments)
    per_image, per_pixel = numpy_stats(folder)
    np.testing.assert_allclose([found['mean'], found['std']], per_image, atol=1e-5)
    np.testing.assert_allclose([found['pixel_mean'], found['pixel_std']], per_pixel, atol=1e-5)
    assert found['images'] == len([*list_images(folder)]) and found['data_dir'] == str(folder)
    pair = ast.literal_eval(printed.partition('\nNORMALISATION: str | tuple = ')[2])
    np.testing.assert_allclose(pair, per_image, atol=2e-5)


@pytest.mark.parametrize('workers', [0, 2])
def test_file_agrees_with_numpy_also_for_images_of_several_sizes(tmp_path, workers):
    folder = draw_folder(tmp_path / 'images', {'a': 5, 'b': 4})
    draw_folder(folder, {'c': 6}, size=(50, 9), seed=1)
    check_against_numpy(folder, '--num-workers', workers)


def test_seedlings_agree_with_numpy(tmp_path, seedlings):
    folder = tmp_path / 'images'
    folder.mkdir()
    for place in sorted(seedlings.iterdir())[:2]:
        (folder / place.name).symlink_to(place)
    check_against_numpy(folder)


def test_few_open_files_are_enough(tmp_path):
    """Results that held shared memory would keep a file open each, and 1,000 pictures are common."""
    folder = draw_folder(tmp_path / 'pictures', {'a': 200, 'b': 100}, size=(8, 8))
    code = ('import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128)); '
            f'sys.argv = ["mean_std.py", "--data-dir", {str(folder)!r}]; sys.path.insert(0, {str(ROOT)!r}); '
            f'runpy.run_path({str(ROOT / "mean_std.py")!r}, run_name="__main__")')
    result = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize('output, words', [('file/x.json', 'OUTPUT_FILE'), ('images', 'is a folder: name a file')])
def test_unwritable_output_is_said_before_the_work(tmp_path, monkeypatch, output, words):
    draw_folder(tmp_path / 'images', {'a': 2})
    (tmp_path / 'file').write_text('')
    monkeypatch.setattr(mean_std, 'read_stats', None)
    with pytest.raises(UserError, match=words):
        measure('--data-dir', 'images', '--output-file', output)


def test_unreadable_images_are_left_out_by_name(tmp_path):
    folder = draw_folder(tmp_path / 'images', {'a': 2, 'b': 2})
    (folder / 'a' / 'text.jpg').write_text('no image')
    printed, found = measure('--data-dir', folder)
    [problem] = found['left_out']
    assert f'left out: {problem}\n' in printed and found['images'] == 4 and found['classes'] == ['a', 'b']
    assert problem.startswith(f'{folder}/a/text.jpg: not a readable image (') and problem.count('text.jpg') == 1


@pytest.mark.parametrize('hot', [0, 1])
def test_channels_without_spread_are_said_and_stay_usable(tmp_path, hot):
    """Fluorescence: green and blue are 0 all over, but perhaps for one hot pixel."""
    (tmp_path / 'images' / 'a').mkdir(parents=True)
    for number in range(3):
        image = np.zeros((30, 30, 3), np.uint8)
        image[..., 0] = np.random.default_rng(number).integers(0, 256, (30, 30))
        image[5, 5, 1] = hot
        Image.fromarray(image).save(tmp_path / 'images' / 'a' / f'{number}.png')
    printed, found = measure('--data-dir', 'images')
    assert 'green and blue: almost the same value all over each image, so the std is set to 1' in printed
    (mean, std), (_, pixel_std) = numpy_stats('images')
    np.testing.assert_allclose(found['mean'], mean, atol=1e-5)
    np.testing.assert_allclose(found['std'], [std[0], 1, 1], atol=1e-5)
    np.testing.assert_allclose(found['pixel_std'], [pixel_std[0], 1, 1], atol=1e-5)
    assert read_measured(['a']) == (found['mean'], found['std'])  # train.py takes them
    assert mean_std.get_mean_and_std([*list_images('images')])[1][1:] == [1, 1]


def test_images_without_any_spread_are_refused(tmp_path):
    (tmp_path / 'images' / 'a').mkdir(parents=True)
    Image.new('RGB', (9, 9), 'red').save(tmp_path / 'images' / 'a' / 'red.png')
    with pytest.raises(UserError, match='the same value all over each image'):
        measure('--data-dir', 'images')


@pytest.mark.parametrize('workers', [0, 2])
def test_a_depth_that_no_file_states_is_asked_for(tmp_path, workers):
    """By whatever process reads the images."""
    folder = draw_folder(tmp_path / 'images', {'a': 2})
    for number in range(4):
        Image.fromarray(np.arange(4000, dtype=np.uint16).reshape(50, 80)).save(folder / 'a' / f'deep{number}.png')
    result = run_script('mean_std.py', '--data-dir', folder, '--num-workers', workers, cwd=tmp_path)
    assert result.returncode == 0 and 'is almost black: its grey values reach 3999' in result.stdout
    assert 'BIT_DEPTH: int | None = 12' in result.stdout and not result.stderr


def test_of_a_set_that_is_split_already_train_is_measured(tmp_path):
    draw_folder(tmp_path / 'ds' / 'Train', {'a': 3, 'b': 4})
    draw_folder(tmp_path / 'ds' / 'valid', {'a': 2, 'b': 2}, seed=1)
    (tmp_path / 'ds' / 'Train' / 'a' / 'notes').write_text('')
    printed, found = measure('--data-dir', 'ds')
    np.testing.assert_allclose([found['mean'], found['std']], numpy_stats(tmp_path / 'ds' / 'Train')[0], atol=1e-5)
    assert (found['classes'], found['images'], found['data_dir']) == (['a', 'b'], 7, os.path.join('ds', 'Train'))
    assert 'ds is split already: measured on ds' in printed and 'left out: 1 without an ending' in printed


@pytest.mark.parametrize('folders, words', [
    ([], 'no sub-folders'), (['a'], 'no images in a'), (None, 'no such folder')])
def test_folders_without_images(tmp_path, folders, words):
    if folders is not None:
        (tmp_path / 'images').mkdir()
    for name in folders or []:
        (tmp_path / 'images' / name).mkdir()
    with pytest.raises(UserError, match=words) as error:
        measure('--data-dir', 'images')
    assert '\n' not in str(error.value)
