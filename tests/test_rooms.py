"""The house: imports go one way, the core loads extras only when they are asked for, packages import nothing."""
import ast

import pytest
from helpers import ROOT

ORDER = ['models', 'runtime', 'settings', 'data', 'evaluation', 'reporting', 'training', 'extras', 'scripts']
SCRIPTS = [ROOT / f'{name}.py' for name in ('mean_std', 'makedata', 'train', 'test')]
CORE = [*SCRIPTS, *sorted((ROOT / 'common').rglob('*.py')), *sorted((ROOT / 'models').glob('*.py'))]
CORE_TESTS = [path for path in sorted((ROOT / 'tests').rglob('*.py')) if 'bench' not in path.parts]
EXTRAS = sorted((ROOT / 'extras').glob('*/**/*.py'))  # with their tests
EXTRAS_CODE = [path for path in EXTRAS if not path.name.startswith('test_')]


def for_each(paths):
    return pytest.mark.parametrize('path', paths, ids=lambda path: path.relative_to(ROOT).as_posix())


def parse(path):
    return ast.parse(path.read_text(encoding='utf-8'))


def imports(tree):
    """Yield (statement, module or name in it) for each import in a syntax tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node, f'{node.module}.{alias.name}'


def room(module):
    """Return 'data' for 'common.data.cache', 'models' for 'models.volo', None for a library."""
    first, _, rest = module.partition('.')
    if first in {path.stem for path in SCRIPTS}:
        return 'scripts'
    if first == 'common':
        return rest.partition('.')[0]
    return first if first in ORDER else None


def guarded(tree):
    """Return the statements directly inside `with extra(...)`."""
    found = set()
    for block in ast.walk(tree):
        if isinstance(block, ast.With) and ast.unparse(block.items[0].context_expr).startswith('extra('):
            found.update(block.body)
    return found


@for_each([*CORE, *EXTRAS_CODE])
def test_a_room_imports_lower_rooms_alone(path):
    name = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    own = room(name)
    for _, module in imports(parse(path)):
        other = room(module)
        if other not in (None, own, 'extras'):
            assert ORDER.index(other) < ORDER.index(own), f'{name} imports {module}'


@for_each(CORE)
def test_the_core_imports_extras_when_they_are_asked_for(path):
    tree = parse(path)
    for node, module in imports(tree):
        if room(module) == 'extras':
            assert node in guarded(tree), f'line {node.lineno}: {module} outside `with extra(...)`'


@for_each(CORE_TESTS)
def test_the_cores_tests_import_no_extra(path):
    assert [module for _, module in imports(parse(path)) if room(module) == 'extras'] == []


@for_each(EXTRAS)
def test_an_extra_imports_no_other(path):
    own = f'extras.{path.relative_to(ROOT / "extras").parts[0]}'
    for _, module in imports(parse(path)):
        assert room(module) != 'extras' or f'{module}.'.startswith(f'{own}.'), module


@for_each(sorted((ROOT / 'common').rglob('__init__.py')))
def test_packages_import_nothing(path):
    assert not list(imports(parse(path)))
