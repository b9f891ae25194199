"""The fixtures of tests/ for the tests that lie beside each extra."""
from conftest import *  # noqa: F403 - pytest finds fixtures by name
