"""mean_std.py against the tutorial's loop and against plain NumPy."""
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT, draw_folder, run_script
from PIL import Image
from torchvision import datasets, transforms

from common.data.folders import list_images
from mean_std import get_mean_and_std


def numpy_stats(folder):
    """((mean, std) of the per-picture values, (mean, std) over all pixels), straight from the files."""
    pictures = [np.asarray(Image.open(path).convert('RGB')).reshape(-1, 3) for path in list_images(folder)]
    means, stds = zip(*(((p / 255).mean(0), (p / 255).std(0, ddof=1)) for p in pictures), strict=True)
    pixels = np.concatenate(pictures)
    return (np.mean(means, 0), np.mean(stds, 0)), ((pixels / 255).mean(0), (pixels / 255).std(0))


def test_get_mean_and_std_is_the_tutorials(tmp_path):
    dataset = datasets.ImageFolder(draw_folder(tmp_path, {'a': 3, 'b': 4}), transforms.ToTensor())
    images = torch.stack([image for image, _ in dataset])
    mean, std = get_mean_and_std([path for path, _ in dataset.samples])
    np.testing.assert_allclose(mean, images.mean((2, 3)).mean(0), atol=1e-6)
    np.testing.assert_allclose(std, images.std((2, 3)).mean(0), atol=1e-6)


def check_against_numpy(folder, tmp_path):
    result = run_script('mean_std.py', '--data-dir', folder, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / 'mean_std.json').read_text())
    per_picture, per_pixel = numpy_stats(folder)
    np.testing.assert_allclose([found['mean'], found['std']], per_picture, atol=1e-5)
    np.testing.assert_allclose([found['pixel_mean'], found['pixel_std']], per_pixel, atol=1e-5)
    assert found['images'] == len([*list_images(folder)]) and found['data_dir'] == str(folder)
    assert f'\nMEAN: tuple | None = ({round(found["mean"][0], 6)}, ' in result.stdout


def test_file_agrees_with_numpy_also_for_pictures_of_several_sizes(tmp_path):
    folder = draw_folder(tmp_path / 'pictures', {'a': 5, 'b': 4})
    draw_folder(folder, {'c': 6}, size=(50, 9), seed=1)
    check_against_numpy(folder, tmp_path)


def test_seedlings_agree_with_numpy(tmp_path, seedlings):
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for place in sorted(seedlings.iterdir())[:2]:
        (folder / place.name).symlink_to(place)
    check_against_numpy(folder, tmp_path)


def test_few_open_files_are_enough(tmp_path):
    """Results that held shared memory would keep a file open each, and 1,000 pictures are common."""
    folder = draw_folder(tmp_path / 'pictures', {'a': 200, 'b': 100}, size=(8, 8))
    code = ('import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128)); '
            f'sys.argv = ["mean_std.py", "--data-dir", {str(folder)!r}]; sys.path.insert(0, {str(ROOT)!r}); '
            f'runpy.run_path({str(ROOT / "mean_std.py")!r}, run_name="__main__")')
    result = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


def test_unwritable_output_is_said_before_the_work(tmp_path):
    folder = draw_folder(tmp_path / 'pictures', {'a': 2})
    (tmp_path / 'file').write_text('')
    result = run_script('mean_std.py', '--data-dir', folder, '--output-file', 'file/x.json', cwd=tmp_path)
    assert result.returncode == 2 and 'OUTPUT_FILE' in result.stderr and len(result.stderr.splitlines()) == 1


def test_unreadable_pictures_are_left_out_by_name(tmp_path):
    folder = draw_folder(tmp_path / 'pictures', {'a': 2, 'b': 2})
    (folder / 'a' / 'text.jpg').write_text('no picture')
    result = run_script('mean_std.py', '--data-dir', folder, cwd=tmp_path)
    found = json.loads((tmp_path / 'mean_std.json').read_text())
    [problem] = found['left_out']
    assert result.returncode == 0 and f'left out: {problem}\n' in result.stdout and found['images'] == 4
    assert problem.startswith(f'{folder}/a/text.jpg: not a readable image (') and problem.count('text.jpg') == 1


@pytest.mark.parametrize('workers', [0, 2])
def test_a_depth_that_no_file_states_is_asked_for(tmp_path, workers):
    """By whatever process reads the pictures."""
    folder = draw_folder(tmp_path / 'pictures', {'a': 2})
    for number in range(4):
        Image.fromarray(np.arange(4000, dtype=np.uint16).reshape(50, 80)).save(folder / 'a' / f'deep{number}.png')
    result = run_script('mean_std.py', '--data-dir', folder, '--num-workers', workers, cwd=tmp_path)
    assert result.returncode == 0 and 'is almost black: its grey values reach 3999' in result.stdout
    assert 'BIT_DEPTH: int | None = 12' in result.stdout and not result.stderr


@pytest.mark.parametrize('folders, words', [
    ([], 'no sub-folders'), (['a'], 'no images in a'), (None, 'no such folder')])
def test_folders_without_pictures(tmp_path, folders, words):
    for name in folders or []:
        (tmp_path / 'pictures' / name).mkdir(parents=True)
    if folders == []:
        (tmp_path / 'pictures').mkdir()
    result = run_script('mean_std.py', '--data-dir', 'pictures', cwd=tmp_path)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and words in result.stderr
