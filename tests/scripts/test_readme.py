"""README.md points at code that is there, and its two commands are in the Makefile."""
import re

from helpers import ROOT

README = (ROOT / 'README.md').read_text(encoding='utf-8')


def test_every_place_it_points_at_exists():
    """In the table of topics: `file`: `name`, `name`; `file`: …"""
    places = re.findall(r'`([\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)', README)
    assert len(places) >= 12
    for file, names in places:
        source = (ROOT / file).read_text(encoding='utf-8')
        for name in re.findall(r'`([\w.]+)`', names):
            assert name in source, f'{name} is not in {file}'


def test_every_file_it_names_exists():
    for name in re.findall(r'`((?:common|models|data1|tests)/[\w.]*)`', README):
        assert (ROOT / name).exists(), name


def test_the_line_without_make_is_the_demo():
    demo = re.search(r'^DEMO = (.*?)\n\n', (ROOT / 'Makefile').read_text(encoding='utf-8'), re.M | re.S)[1]
    assert 'python train.py ' + ' '.join(demo.replace('\\', ' ').split()) in README


def test_its_commands_are_in_the_makefile():
    makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
    for target in re.findall(r'(?:^|`)make (\w+)', README, re.M):
        assert re.search(rf'^{target}:', makefile, re.M), target
