"""The four scripts as a user runs them, one after the other, in processes of their own."""
import csv
import json
import shutil
from pathlib import Path

import pytest
from helpers import ROOT, TINY, classify, draw_folder, read_rows, run_script
from PIL import Image

import test
from common import settings
from common.runtime.errors import UserError

FAST = ('--img-size', 32, '--batch-size', 8, '--epochs', 2, '--warmup', 0.5, '--model-kwargs', TINY, '--lr', 1e-3,
        '--pretrained', 'false', '--num-workers', 1)


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A folder in which the first three steps have been run."""
    folder = tmp_path_factory.mktemp('project')
    draw_folder(folder / 'data1', {'Fat Hen': 16, 'Maize': 16, 'Sugar beet': 8})
    for script, arguments in (('mean_std.py', ()), ('makedata.py', ()), ('train.py', FAST)):
        done = run_script(script, *arguments, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def predict(monkeypatch):
    """predict(folder, …) runs test.py there, in this process, and returns what it printed and its rows."""
    def run(folder, *arguments):
        monkeypatch.chdir(folder)
        done = classify(*arguments)
        rows = read_rows('predictions')
        assert done.returncode == (3 if any(row['error'] for row in rows) else 0)
        return done.stdout, rows
    return run


def test_training_used_the_measured_normalisation(project):
    measured = json.loads((project / 'mean_std.json').read_text())
    result = json.loads((project / 'checkpoints' / 'volo_d1' / 'result.json').read_text())
    assert result['transform']['mean'] == measured['mean'] and result['finished']


def test_val_is_predicted_with_the_accuracy_of_training(project):
    done = run_script('test.py', cwd=project)
    assert done.returncode == 0, done.stderr
    out = done.stdout
    rows = read_rows(project / 'predictions')
    result = json.loads((project / 'checkpoints' / 'volo_d1' / 'result.json').read_text())
    assert f'ACC1 {result["best"]["acc1"]:.2f} %' in out
    names = sorted(p.relative_to(project / 'data/val').as_posix() for p in (project / 'data' / 'val').rglob('*.png'))
    assert [row['path'] for row in rows] == names
    with open(project / 'predictions' / 'predictions.csv', encoding='utf-8-sig', newline='') as file:
        assert [(row['path'], row['class']) for row in csv.DictReader(file)] == [(r['path'], r['class']) for r in rows]
    for row in rows:
        shares = [top['confidence'] for top in row['top5']]
        assert len(shares) == 3 and sum(shares) == pytest.approx(1, abs=1e-4) and shares == sorted(shares, reverse=True)
        assert f'{row["path"]} → {row["class"]} ({row["confidence"]:.1%})' in out
    assert Image.open(project / 'predictions' / 'predictions.png').width > 500


def test_what_chose_the_weights_is_not_what_measures_them(project, tmp_path, predict):
    """data/val is said to have chosen them; data/test has not, and is taken where it is there."""
    out, _ = predict(project)
    low, high = json.loads((project / 'predictions' / 'report.json').read_text())['acc1_interval']
    assert 'These images chose the weights' in out and f'(95 % interval {low:.1f} to {high:.1f} %)' in out
    assert 'makedata.py --test-ratio 0.15, then train.py again' in out
    shutil.copytree(project / 'data', tmp_path / 'data')
    (tmp_path / 'data' / 'val').rename(tmp_path / 'data' / 'test')
    out, rows = predict(tmp_path, '--checkpoint', project / 'checkpoints' / 'volo_d1' / 'best.pth')
    assert 'These images chose' not in out and 'ACC1' in out and len(rows) == 12


def test_what_was_learnt_from_is_not_what_measures(project, tmp_path, predict):
    """As a user would do it who does not train again after another draw."""
    best = project / 'checkpoints' / 'volo_d1' / 'best.pth'
    shutil.copytree(project / 'data1', tmp_path / 'data1')
    shutil.copytree(project / 'data', tmp_path / 'data')
    assert 'drawn anew' not in predict(tmp_path, '--checkpoint', best)[0]
    out, _ = predict(tmp_path, '--checkpoint', best, '--test-dir', 'data1')
    assert 'The network has learnt from most of these images' in out
    done = run_script('makedata.py', '--test-ratio', 0.2, cwd=tmp_path)
    assert ('TEST_RATIO was 0.0 and is 0.2 now, so all images are drawn anew: a network that was trained before has '
            'learnt from some of those that measure now, so train it again\n') in done.stdout
    assert 'data was drawn anew after the training' in predict(tmp_path, '--checkpoint', best)[0]


def test_the_checkpoint_is_all_that_is_needed(project, tmp_path, predict):
    """In another folder, flat, other names, other formats, one broken file: same classes, a row for each."""
    shutil.copy(project / 'checkpoints' / 'volo_d1' / 'best.pth', tmp_path)
    photos = tmp_path / 'photos'
    photos.mkdir()
    for number, path in enumerate(sorted((project / 'data' / 'val').rglob('*.png'))[:5]):
        Image.open(path).save(photos / f'{number}.BMP')
    (photos / '2broken.jpg').write_text('no picture')
    out, rows = predict(tmp_path, '--checkpoint', 'best.pth', '--test-dir', 'photos', '--batch-size', 2)
    assert [row['path'] for row in rows] == ['0.BMP', '1.BMP', '2.BMP', '2broken.jpg', '3.BMP', '4.BMP']
    assert [bool(row['error']) for row in rows] == [False, False, False, True, False, False]
    assert '5 images classified, 0 not recognised, 1 unreadable' in out and 'ACC1' not in out
    _, whole = predict(project)
    for row, same in zip([r for r in rows if not r['error']], whole, strict=False):
        assert row['class'] == same['class'] and row['confidence'] == pytest.approx(same['confidence'], abs=0.01)


def test_a_single_picture(project, predict):
    path = next((project / 'data' / 'val').rglob('*.png'))
    _, rows = predict(project, '--test-dir', path)
    assert [row['path'] for row in rows] == [path.name]


@pytest.mark.parametrize('arguments, words', [
    (('--checkpoint', 'gone.pth'), 'gone.pth: no such file'), (('--test-dir', 'gone'), 'no such file or folder'),
    (('--test-dir', 'empty'), 'no images in it'), (('--checkpoint', 'data1/Maize/000.png'), 'not a readable file'),
    (('--output-dir', 'mean_std.json'), 'OUTPUT_DIR'), (('--unknown-below', '1.5'), 'UNKNOWN_BELOW = 1.5 must be'),
    (('--batch-size', 'ten'), 'BATCH_SIZE must be a whole number')])
def test_mistakes_end_in_one_line(project, monkeypatch, arguments, words):
    monkeypatch.chdir(project)
    Path('empty').mkdir(exist_ok=True)
    with pytest.raises(UserError, match=words) as error:
        test.main(settings.read(test, list(arguments)))
    assert '\n' not in str(error.value)


@pytest.mark.slow
def test_overrides_hold_in_spawned_workers(project, tmp_path):
    """As on Windows and macOS: a worker imports the script anew, and must still see --img-size 48 and the rest."""
    launcher = tmp_path / 'launch.py'
    launcher.write_text(
        'import multiprocessing, runpy, sys\n'
        'if __name__ == "__main__":\n'
        '    multiprocessing.set_start_method("spawn")\n'
        '    sys.argv = sys.argv[1:]\n'
        '    runpy.run_path(sys.argv[0], run_name="__main__")\n')
    done = run_script(launcher, ROOT / 'train.py', *FAST, '--img-size', 48, '--epochs', 1, '--warmup', 0,
                      '--output-dir', 'spawned', cwd=project, env={'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr
    result = json.loads((project / 'spawned' / 'result.json').read_text())
    assert result['settings']['IMG_SIZE'] == [48, 48] and result['finished']
