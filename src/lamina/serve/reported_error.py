"""An error on its way from a serving process to the one that a person looks at."""

from __future__ import annotations

import json

import lamina.errors
from lamina.errors import Error, KernelError


def encode_error(error: Error) -> bytes:
    """Return the error's family, message and hint as one line of JSON."""
    families = type(error).__mro__
    family = next(kind for kind in families if kind.__module__ == lamina.errors.__name__)
    record = {"family": family.__name__, "message": str(error), "hint": error.hint}
    return json.dumps(record).encode()


def decode_error(data: bytes) -> Error:
    """Return the error that :func:`encode_error` wrote; its family is the nearest public one."""
    try:
        record = json.loads(data)
        family = getattr(lamina.errors, record["family"])
        error = family(record["message"], hint=record["hint"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return KernelError("the serving process ended without saying why")
    return error if isinstance(error, Error) else KernelError(str(record["message"]))
