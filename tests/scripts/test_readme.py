"""README and docs/ point at what is there, say the same in both languages, and the README stays short."""
import re

import pytest
from helpers import ROOT

MAKEFILE = (ROOT / 'Makefile').read_text(encoding='utf-8')
DOCUMENTS = [ROOT / 'README.md', ROOT / 'README.zh.md', *sorted((ROOT / 'docs').glob('*.md'))]
README, CHINESE = (path.read_text(encoding='utf-8') for path in DOCUMENTS[:2])
SOURCES = ''.join(path.read_text(encoding='utf-8') for folder in ('', 'common', 'models')
                  for path in (ROOT / folder).glob('**/*.py' if folder else '*.py'))
LINES = 150

documents = pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: path.name)
ENVIRONMENT = ('HF_ENDPOINT', 'GLOO_SOCKET_IFNAME', 'NCCL_SOCKET_IFNAME')  # variables of libraries


def test_the_readme_is_short():
    assert len(README.splitlines()) <= LINES and len(CHINESE.splitlines()) <= LINES


def test_every_topic_points_at_code():
    """In the table of topics: `file`: `name`, `name`; `file`: …"""
    places = re.findall(r'`([\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)', (ROOT / 'docs' / 'code.md').read_text('utf-8'))
    assert len(places) >= 12
    for file, names in places:
        source = (ROOT / file).read_text(encoding='utf-8')
        for name in re.findall(r'`([\w.]+)`', names):
            assert name in source, f'{name} is not in {file}'


@documents
def test_every_file_it_names_exists(path):
    text = path.read_text(encoding='utf-8')
    for name in re.findall(r'`((?:common|models|data1|tests|docs)/[\w./]*)`', text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r'\]\((?!https?:)([^)#]+)', text):
        assert (path.parent / name).exists(), name


@documents
def test_every_constant_it_names_exists(path):
    for name in re.findall(r'`([A-Z][A-Z_]+)(?:`| = )', path.read_text(encoding='utf-8')):
        assert re.search(rf'^(?:class )?{name}\b', SOURCES, re.M) or name in ENVIRONMENT, name


@documents
def test_its_commands_are_in_the_makefile(path):
    for target in re.findall(r'(?:^|`)make ([\w-]+)', path.read_text(encoding='utf-8'), re.M):
        assert re.search(rf'^{target}:', MAKEFILE, re.M), target


def test_the_tree_has_every_file():
    tree = (ROOT / 'docs' / 'code.md').read_text(encoding='utf-8').partition('```')[2].partition('```')[0]
    for folder in ('common', 'models'):
        for path in (ROOT / folder).rglob('*.py'):
            assert path.name == '__init__.py' or path.name in tree, path


def test_the_line_without_make_is_the_demo():
    demo = re.search(r'^DEMO = (.*?)\n\n', MAKEFILE, re.M | re.S)[1]
    assert 'python train.py ' + ' '.join(demo.replace('\\', ' ').split()) in README


def test_both_languages_have_the_same_parts():
    for pattern in (r'^```\n.*?^```', r'^\| `[^|]*\|', r'\]\([^)]+\)', r'--[a-z-]+'):
        ours, theirs = (re.findall(pattern, text, re.M | re.S) for text in (README, CHINESE))
        assert len(ours) == len(theirs) and len(ours) > 1, pattern
    assert re.findall(r'^```\n.*?^```', README, re.M | re.S) == re.findall(r'^```\n.*?^```', CHINESE, re.M | re.S)
    assert README.count('\n## ') == CHINESE.count('\n## ')
    assert set(re.findall(r'\d+\.\d+ %', README)) == set(re.findall(r'\d+\.\d+ %', CHINESE))
