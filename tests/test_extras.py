"""The core does without extras/: the four steps run in a copy of the house from which it is gone.

In the whole of the suite the fixture no_other_extra hides from each test the extras that are not its own. The slow
tests here delete them from a copy.
"""
import os
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT, SMALL, draw_folder

EXTRAS = sorted(folder.name for folder in (ROOT / 'extras').glob('[a-z]*/'))
FOLDERS = ('common', 'data1', 'docs', 'models', 'tests')
RUN = ('-q', '-p', 'no:cacheprovider', '-m', 'not slow and not root')

# Each constant that asks for an extra, and what else its script needs.
ASKING = [('makedata', '--labels=table.csv'), ('makedata', '--folds=3'), ('makedata', '--shards'),
          ('makedata', '--corrections=table.csv'), ('test', '--review'),
          ('train', '--tracker=tensorboard'), ('train', '--compile'), ('train', '--teacher=x.pth'),
          ('train', '--gpu-augment'), ('test', '--tta'), ('test', '--explain'), ('test', '--sort-to=sorted'),
          ('test', '--watch')]

FOUR_STEPS = f'''
import sys

import makedata, mean_std, test, train
from common import settings

TRAINING = {[f'{name}={value}' for name, value in SMALL.items() if name != '--output-dir']}
ARGUMENTS = {{'mean_std': ['--num-workers=0'], 'makedata': [], 'train': TRAINING, 'test': ['--num-workers=0']}}

def run(name, *arguments):
    module = sys.modules[name]
    module.main(settings.read(module, [*ARGUMENTS[name], *arguments]))

for name in ARGUMENTS:
    run(name)
for name, argument in {ASKING}:
    print('ASKED FOR', argument)
    try:
        run(name, argument)
    except settings.UserError as error:
        print(error)
'''


def copy_house(target, without=None):
    """Copy the house without extras/, or with all extras but one."""
    target.mkdir()
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith('.'):
            shutil.copy(path, target)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns('__pycache__'))
    if without:
        shutil.copytree(ROOT / 'extras', target / 'extras', ignore=shutil.ignore_patterns('__pycache__', without))
    return target


def python(house, *arguments, cwd=None, **variables):
    env = {**os.environ, 'PYTHONPATH': str(house), 'PYTHONUTF8': '1', 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1',
           **variables}
    return subprocess.run([sys.executable, *arguments], cwd=cwd or house, env=env, text=True, encoding='utf-8',
                          capture_output=True)


def test_the_four_steps_run_without_extras(tmp_path):
    """A constant that asks for an extra leads to one line that says which folder is missing."""
    house = copy_house(tmp_path / 'house')
    draw_folder(tmp_path / 'data1', {'a': 12, 'b': 12})
    done = python(house, '-c', FOUR_STEPS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'predictions' / 'predictions.csv').exists()
    _, *answers = done.stdout.split('ASKED FOR ')
    assert len(answers) == len(ASKING)
    for answer in answers:
        assert answer.count(' needs the folder extras') == 1, answer


@pytest.mark.slow
def test_the_cores_tests_pass_without_extras(tmp_path):
    """Those that start the scripts, from which the fixture no_other_extra can hide nothing."""
    house = copy_house(tmp_path / 'house')
    done = python(house, '-m', 'pytest', *RUN, 'tests/scripts')
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.slow
@pytest.mark.parametrize('gone', EXTRAS)
def test_everything_else_does_without_each_extra(tmp_path, gone):
    """All tests that are left are collected; those of the house and of its documents, and the fuzz tests, pass."""
    house = copy_house(tmp_path / 'house', without=gone)
    done = python(house, '-m', 'pytest', *RUN, '-k', 'test_rooms or test_readme or fuzz', FUZZ='5')
    assert done.returncode == 0, f'without {gone}: {done.stdout[-5000:]}'
