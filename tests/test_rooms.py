"""The house: imports go one way, packages import nothing by themselves, files and functions stay short."""
import ast

import pytest
from helpers import ROOT

ORDER = ['models', 'runtime', 'settings', 'data', 'evaluation', 'reporting', 'training', 'scripts']  # lower rooms first
SCRIPTS = [ROOT / f'{name}.py' for name in ('mean_std', 'makedata', 'train', 'test')]
FILES = [*SCRIPTS, *sorted((ROOT / 'common').rglob('*.py')), *sorted((ROOT / 'models').glob('*.py'))]
FILE_LINES, FUNCTION_LINES = 350, 45

files = pytest.mark.parametrize('path', FILES, ids=lambda path: path.relative_to(ROOT).as_posix())


def room(module):
    """'common.data.cache' is in 'data', 'models.volo' in 'models'; None for a library."""
    first, _, rest = module.partition('.')
    if first in {path.stem for path in SCRIPTS}:
        return 'scripts'
    return {'common': rest.split('.')[0], 'models': 'models'}.get(first)


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


@files
def test_a_room_imports_lower_rooms_alone(path):
    name = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    own = room(name)
    for module in imported(ast.parse(path.read_text(encoding='utf-8'))):
        other = room(module)
        if other and other != own:
            assert ORDER.index(other) < ORDER.index(own), f'{name} imports {module}'


@files
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding='utf-8')
    assert len(text.splitlines()) <= FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < FUNCTION_LINES, node.name


@pytest.mark.parametrize('path', sorted((ROOT / 'common').rglob('__init__.py')), ids=lambda path: path.parent.name)
def test_packages_import_nothing(path):
    assert not list(imported(ast.parse(path.read_text(encoding='utf-8'))))
