"""What tests that give a program anything at all share.

    FUZZ=20000 python -m pytest -k fuzz      `make fuzz`

The inputs are always the same: hypothesis draws them from fixed seeds.
"""
import contextlib
import copy
import json
import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

MANY = settings(max_examples=int(os.environ.get('FUZZ', 100)), deadline=None, derandomize=True, database=None,
                suppress_health_check=list(HealthCheck))

SOME = settings(MANY, max_examples=int(os.environ.get('FUZZ', 40)))  # where each takes longer

NUMBERS = st.one_of(st.integers(-2 ** 70, 2 ** 70), st.floats(), st.sampled_from([0, -1, 1, 48, 10 ** 5, 2 ** 31]))

JSON = st.recursive(
    st.one_of(st.none(), NUMBERS, st.text(max_size=9),
              st.sampled_from(['makedata.py', 'train', [0.5] * 3, [0.2, 0.2, 0]])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ['made_by', 'files', 'settings', 'file', 'side', 'sha256', 'mean', 'std', 'classes', 'good.png']), inner),
    max_leaves=9)

# In place of a small text file: any text, JSON that is not what was meant, JSON too deep to be read.
TEXTS = st.one_of(st.text(), JSON.map(json.dumps), st.sampled_from(['[' * 10 ** 5, '{"a":' * 10 ** 5]))


def write_odd(path, text):
    """Write a text that may hold halves of characters."""
    path.write_text(text, encoding='utf-8', errors='backslashreplace')


def places_in(content, depth=4):
    """The places of a value in nested dicts and lists, as tuples of keys: all of dicts, the first three of lists."""
    found = []
    if depth and isinstance(content, dict):
        inner = content.items()
    elif depth and isinstance(content, list):
        inner = list(enumerate(content))[:3]
    else:
        return found
    for key, value in inner:
        found.append((key,))
        found += [(key, *place) for place in places_in(value, depth - 1)]
    return found


def changed(content, place, value):
    """A container with another value at a place, a tuple of keys; as it is where there is no such place."""
    key, *rest = place
    content = copy.copy(content)
    with contextlib.suppress(TypeError, KeyError, IndexError, RuntimeError):
        content[key] = changed(content[key], rest, value) if rest else value
    return content
