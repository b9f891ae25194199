"""What tests that give a program anything at all share.

    FUZZ=20000 python -m pytest -k fuzz      `make fuzz`

The inputs are always the same: hypothesis draws them from fixed seeds.
"""
import json
import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

MANY = settings(max_examples=int(os.environ.get('FUZZ', 100)), deadline=None, derandomize=True, database=None,
                suppress_health_check=list(HealthCheck))

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
