"""The broker's audit log: a line of JSON for everything that was decided, and no secret in it."""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType
from typing import Any, Final, Self

from lamina.errors import StoreError
from lamina.trust import strict_json

_MAX_TEXT: Final = 300


class AuditLog:
    """Appends to a file.  What cannot be written down is not done: ``write`` raises StoreError."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise StoreError(f"cannot write the audit log {path}: {error.strerror}") from None

    def write(self, event: str, **fields: Any) -> None:
        """Append a line; long texts are cut."""
        shown = {
            name: value[:_MAX_TEXT] if isinstance(value, str) else value
            for name, value in fields.items()
        }
        line = {"time": round(time.time(), 3), "event": event, **shown}
        data = strict_json.compact(line) + b"\n"
        with self._lock:
            try:
                written = os.write(self._fd, data)
            except OSError as error:
                reason = error.strerror
            else:
                reason = "" if written == len(data) else "it was cut short"
        if reason:
            raise StoreError(f"cannot write the audit log {self.path}: {reason}")

    def close(self) -> None:
        """Close the file; idempotent."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
