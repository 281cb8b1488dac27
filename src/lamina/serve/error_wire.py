"""An error on its way from a serving process to the one that a person looks at."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

import lamina.errors
from lamina.errors import Error, KernelError

_FAILED: Final = b"failed "


class ReportedError(msgspec.Struct, frozen=True, kw_only=True):
    """An error as plain values; ``family`` is the nearest class in :mod:`lamina.errors`."""

    family: str
    message: str
    hint: str | None = None

    @classmethod
    def of(cls, error: Error) -> ReportedError:
        """Return what is told of an error."""
        families = type(error).__mro__
        family = next(kind for kind in families if kind.__module__ == lamina.errors.__name__)
        return cls(family=family.__name__, message=str(error), hint=error.hint)

    def to_error(self) -> Error:
        """Return the error again; one of an unknown family is a KernelError."""
        family = getattr(lamina.errors, self.family, None)
        if not isinstance(family, type) or not issubclass(family, Error):
            family = KernelError
        return family(self.message, hint=self.hint)


def encode_error(error: Error) -> bytes:
    """Return the error's family, message and hint as one line of JSON."""
    return json.dumps(msgspec.structs.asdict(ReportedError.of(error))).encode()


def decode_error(data: bytes) -> Error:
    """Return the error that :func:`encode_error` wrote; its family is the nearest public one."""
    try:
        return msgspec.convert(json.loads(data), ReportedError).to_error()
    except (ValueError, RecursionError, msgspec.ValidationError):
        return KernelError("the serving process ended without saying why")


def encode_failure(error: Error) -> bytes:
    """Return what :func:`read_report` raises at the other end."""
    return _FAILED + encode_error(error)


def read_report(data: bytes, silence: str) -> Any:
    """Return the JSON that another process wrote when it had done its work.

    Raises the Error that it met, or KernelError with the text *silence* if it ended before it had
    written all.
    """
    if data.startswith(_FAILED):
        raise decode_error(data.removeprefix(_FAILED))
    try:
        return json.loads(data)
    except ValueError as error:
        raise KernelError(silence) from error
