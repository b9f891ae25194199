"""The error that models/ raises, and the words of errors that others raise.

This file imports nothing of the project: the network (outlook.py) needs it as much as the files of weights do, and
models/ is the lowest room, so that common/runtime/errors.py is out of its reach.
"""


class WeightsError(ValueError):
    """Weights that cannot be read or fetched, or do not fit the network. The message is one line."""


def first_line(error: object) -> str:
    """Return the first line of an error's message, or its type if it has none; at most 300 characters."""
    message = str(error).strip()
    if not message:
        message = type(error).__name__
    return message.splitlines()[0][:300]
