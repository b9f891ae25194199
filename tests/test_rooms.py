"""The house: imports go one way, the core loads extras only when they are asked for, packages import nothing."""
import ast

import pytest
from helpers import ROOT

# lower rooms first
ORDER = ['models', 'runtime', 'settings', 'data', 'evaluation', 'reporting', 'training', 'extras', 'scripts']
SCRIPTS = [ROOT / f'{name}.py' for name in ('mean_std', 'makedata', 'train', 'test')]
CORE = [*SCRIPTS, *sorted((ROOT / 'common').rglob('*.py')), *sorted((ROOT / 'models').glob('*.py'))]
EXTRAS = [path for path in sorted((ROOT / 'extras').rglob('*.py')) if not path.name.startswith('test_')]


def named(paths):
    return pytest.mark.parametrize('path', paths, ids=lambda path: path.relative_to(ROOT).as_posix())


def room(module):
    """'common.data.cache' is in 'data', 'models.volo' in 'models'; None for a library."""
    first, _, rest = module.partition('.')
    if first in {path.stem for path in SCRIPTS}:
        return 'scripts'
    return {'common': rest.split('.')[0], 'models': 'models', 'extras': 'extras'}.get(first)


def imports(nodes):
    """[(import statement, module)] of syntax nodes."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node, f'{node.module}.{alias.name}') for alias in node.names)


def guarded(tree):
    """The import statements inside `with extra(...)`."""
    return {node for block in ast.walk(tree) if isinstance(block, ast.With)
            for item in block.items if ast.unparse(item.context_expr).startswith('extra(') for node in block.body}


@named([*CORE, *EXTRAS])
def test_a_room_imports_lower_rooms_alone(path):
    name = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    own, tree = room(name), ast.parse(path.read_text(encoding='utf-8'))
    for _, module in imports(ast.walk(tree)):
        other = room(module)
        if other and other not in (own, 'extras'):
            assert ORDER.index(other) < ORDER.index(own), f'{name} imports {module}'


@named(CORE)
def test_the_core_imports_extras_when_they_are_asked_for(path):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    for node, module in imports(ast.walk(tree)):
        if room(module) == 'extras':
            assert node in guarded(tree), f'line {node.lineno}: {module} outside `with extra(...)`'


@named(EXTRAS)
def test_an_extra_imports_no_other(path):
    own = f'extras.{path.relative_to(ROOT / "extras").parts[0]}'
    for _, module in imports(ast.walk(ast.parse(path.read_text(encoding='utf-8')))):
        assert room(module) != 'extras' or f'{module}.'.startswith(f'{own}.'), module


@named(sorted((ROOT / 'common').rglob('__init__.py')))
def test_packages_import_nothing(path):
    assert not list(imports(ast.walk(ast.parse(path.read_text(encoding='utf-8')))))
