"""What a value that was read from a file may be: the file may come from anyone, or have been edited.

A schema is a function that tells whether a value is fine, a dict {key: schema} for a dict that has these keys at least,
or a list [schema] for a list of any length.
"""
from collections.abc import Callable
from typing import Any

Schema = Callable[[Any], bool] | dict[str, Any] | list[Any]

LONGEST_TEXT = 10_000  # characters
LARGEST = 2 ** 63      # number, either way


def wrong_place(value: Any, schema: Schema, place: str = '') -> str | None:
    """Return where a value is not what the schema says, such as 'progress.updates', or None where it is.

    `place` is where the value itself is.
    """
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return place
        for key, inner in schema.items():
            below = f'{place}.{key}' if place else key
            wrong = below if key not in value else wrong_place(value[key], inner, below)
            if wrong is not None:
                return wrong
        return None
    if isinstance(schema, list):
        if not isinstance(value, list):
            return place
        for number, item in enumerate(value):
            wrong = wrong_place(item, schema[0], f'{place}[{number}]')
            if wrong is not None:
                return wrong
        return None
    return None if schema(value) else place


def optional(schema: Schema) -> Schema:
    """Return the schema of what may also be None."""
    return lambda value: value is None or wrong_place(value, schema) is None


def is_count(value: Any) -> bool:
    """Return whether something is a whole number from 0."""
    return type(value) is int and 0 <= value <= LARGEST


def is_positive_count(value: Any) -> bool:
    """Return whether something is a whole number from 1."""
    return is_count(value) and value > 0


def is_number(value: Any) -> bool:
    """Return whether something is a number, which may be infinite or none (NaN)."""
    return type(value) is float or (type(value) is int and abs(value) <= LARGEST)


def is_amount(value: Any) -> bool:
    """Return whether something is a number from 0 that can be computed with: not an infinite one."""
    return is_number(value) and 0 <= value <= LARGEST


def is_share(value: Any) -> bool:
    """Return whether something is a number from 0 to 1."""
    return is_number(value) and 0 <= value <= 1


def is_switch(value: Any) -> bool:
    """Return whether something is True or False."""
    return isinstance(value, bool)


def is_percent(value: Any) -> bool:
    """Return whether something is a number from 0 to 100, but for rounding."""
    return is_number(value) and 0 <= value < 101


def is_text(value: Any) -> bool:
    """Return whether something is a text that a file name could be, too: nothing in it is half a character, but for
    what Python puts in place of bytes that are no UTF-8.
    """
    if not isinstance(value, str) or len(value) > LONGEST_TEXT or '\0' in value:
        return False
    try:
        value.encode('utf-8', 'surrogateescape')
    except UnicodeEncodeError:
        return False
    return True
