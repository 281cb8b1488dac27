"""The broker's audit log: a line of JSON for everything that was decided, and no secret in it.

Whoever can connect can make lines, so the log is bounded: ``audit.jsonl`` and ``audit.jsonl.1``
before it.  Of what is older stays a summary at the beginning of the newest, in which nothing is
missing but the single times.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from types import TracebackType
from typing import Any, Final, Self

from lamina.errors import StoreError
from lamina.kbs.audit_summary import MAX_LINE_BYTES, summarize
from lamina.trust import strict_json

MAX_BYTES: Final = 16 << 20
"""Of each of the two files."""
_MAX_TEXT: Final = 300
_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


class AuditLog:
    """Appends to a file.  What cannot be written down is not done: ``write`` raises StoreError.

    Thread-safe; several brokers may write to one file, and it may be renamed below them.
    """

    def __init__(self, path: str, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._fd = -1
        self._closed = False
        try:
            self._open()
        except OSError as error:
            raise self._failed(error.strerror) from None

    def write(self, event: str, **fields: Any) -> None:
        """Append a line; long texts are cut."""
        shown = {
            name: value[:_MAX_TEXT] if isinstance(value, str) else value
            for name, value in fields.items()
        }
        line = {"time": round(time.time(), 3), "event": event, **shown}
        with self._lock:
            try:
                self._append(strict_json.compact(line) + b"\n")
            except OSError as error:
                raise self._failed(error.strerror or str(error)) from None

    def close(self) -> None:
        """Close the file; idempotent."""
        with self._lock:
            self._closed = True
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _append(self, data: bytes) -> None:
        if self._closed:
            raise OSError(None, "it is closed")
        if self._fd < 0:
            self._open()
        try:
            self._lock_newest()
            size = os.fstat(self._fd).st_size
            if size and size + len(data) > self.max_bytes:
                self._begin_anew()
                size = os.fstat(self._fd).st_size
            if os.write(self._fd, data) != len(data):
                # Half a line would swallow the next one.
                os.ftruncate(self._fd, size)
                raise OSError(None, "it was cut short")
        finally:
            if self._fd >= 0:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _lock_newest(self) -> None:
        """Lock the file that has the name at present."""
        while True:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                if os.path.samestat(os.fstat(self._fd), os.stat(self.path)):
                    return
            except FileNotFoundError:
                pass
            os.close(self._fd)
            self._fd = -1
            self._open()

    def _open(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            # The place of the log is empty if the last broker died between two names.
            if not os.path.lexists(self.path):
                os.rename(f"{self.path}.next", self.path)
        self._fd = os.open(self.path, _FLAGS, 0o600)

    def _begin_anew(self) -> None:
        """Keep the log as the previous one, and begin a new one with a summary of that before."""
        previous, following = f"{self.path}.1", f"{self.path}.next"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(following)
        fd = os.open(following, _FLAGS | os.O_EXCL, 0o600)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.writelines(strict_json.compact(line) + b"\n" for line in _summary(previous))
            os.fsync(fd)
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.rename(self.path, previous)
            os.rename(following, self.path)
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd = fd

    def _failed(self, reason: str | None) -> StoreError:
        return StoreError(f"cannot write the audit log {self.path}: {reason}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _summary(path: str) -> list[dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            return summarize(iter(lambda: file.readline(MAX_LINE_BYTES), b""))
    except FileNotFoundError:
        return []
