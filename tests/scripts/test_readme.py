"""README and docs/ and the pages of extras point at what is there, and say the same in both languages."""
import re

import pytest
from helpers import ROOT


def read(path):
    return path.read_text(encoding='utf-8')


MAKEFILE = read(ROOT / 'Makefile')
DOCUMENTS = [*sorted(ROOT.glob('README*.md')), *sorted((ROOT / 'docs').glob('*.md')),
             *sorted((ROOT / 'extras').glob('*/README.md'))]
ENGLISH = read(ROOT / 'README.md')
CHINESE = read(ROOT / 'README.zh.md')
SOURCES = ''.join(map(read, [*ROOT.glob('*.py'), *(ROOT / 'common').rglob('*.py'), *(ROOT / 'models').rglob('*.py'),
                             *(ROOT / 'extras').rglob('*.py')]))
ENVIRONMENT = ('HF_ENDPOINT', 'GLOO_SOCKET_IFNAME', 'NCCL_SOCKET_IFNAME', 'NPM_CONFIG_REGISTRY')  # of other programs

documents = pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


def assert_exists(path):
    """An extra may have been deleted; what a page says of it then is not wrong."""
    parts = path.resolve().relative_to(ROOT).parts
    deleted = parts[:1] == ('extras',) and not ROOT.joinpath(*parts[:2]).exists()
    assert path.exists() or deleted, path


def test_every_topic_points_at_code():
    """The table of topics has `file`: `name`, `name`; `file`: …"""
    places = re.findall(r'`([\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)', read(ROOT / 'docs' / 'code.md'))
    assert len(places) >= 12
    for file, names in places:
        assert_exists(ROOT / file)
        if (ROOT / file).exists():
            for name in re.findall(r'`([\w.]+)`', names):
                assert name in read(ROOT / file), f'{name} is not in {file}'


@documents
def test_every_file_it_names_exists(path):
    text = read(path)
    for name in re.findall(r'`((?:common|models|data1|tests|docs|extras)/[\w./]*)`', text):
        assert_exists(ROOT / name)
    for name in re.findall(r'\]\((?!https?:)([^)#]+)', text):
        assert_exists(path.parent / name)


@documents
def test_every_constant_it_names_exists(path):
    for name in re.findall(r'`([A-Z][A-Z_]+)(?:`| = )', read(path)):
        assert re.search(rf'^(?:class )?{name}\b', SOURCES, re.M) or name in ENVIRONMENT, name


@documents
def test_its_commands_are_in_the_makefile(path):
    for target in re.findall(r'(?:^|`)make ([\w-]+)', read(path), re.M):
        assert re.search(rf'^{target}:', MAKEFILE, re.M), target


def test_the_makefile_explains_its_targets():
    targets = re.search(r'^\.PHONY: (.*)$', MAKEFILE, re.M)[1].split()
    assert sorted(re.findall(r'^# make ([\w-]+) {2,}\S', MAKEFILE, re.M)) == sorted(targets)


def test_the_tree_has_every_file():
    tree = read(ROOT / 'docs' / 'code.md').partition('```')[2].partition('```')[0]
    for folder in ('common', 'models'):
        for path in (ROOT / folder).rglob('*.py'):
            assert path.name == '__init__.py' or path.name in tree, path


def test_the_line_without_make_is_the_demo():
    demo = re.search(r'^DEMO = (.*?)\n\n', MAKEFILE, re.M | re.S)[1]
    assert 'python train.py ' + ' '.join(demo.replace('\\', ' ').split()) in ENGLISH


@pytest.mark.parametrize('pattern', [r'^```\n.*?^```', r'^\| `[^|]*\|', r'\]\([^)]+\)', r'--[a-z-]+', r'^## '])
def test_both_languages_have_the_same_parts(pattern):
    english, chinese = (re.findall(pattern, text, re.M | re.S) for text in (ENGLISH, CHINESE))
    assert len(english) == len(chinese) > 1


def test_both_languages_have_the_same_commands_and_results():
    for pattern in (r'^```\n.*?^```', r'\d+\.\d+ %'):
        english, chinese = (set(re.findall(pattern, text, re.M | re.S)) for text in (ENGLISH, CHINESE))
        assert english == chinese
