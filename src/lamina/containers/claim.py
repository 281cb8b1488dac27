"""Whether somebody looks after a container, by a lock that the kernel lets go of.

``RUN/containers/NAME/alive`` is locked by all processes that look after the container, or serve its
image for it alone, from when its folders are made; and by none once they have ended, however they
did.  Its lines are JSON: first the folder of the container's
record, and at the end its exit code.  A reader who has the lock has all that will ever be in it,
and keeps it after the file is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from typing import Any, Final

CLAIM_FILE: Final = "alive"
_MAX_BYTES: Final = 1 << 16


class Claim:
    """The locked file, as the processes that look after the container have it."""

    def __init__(self, bundle: str, folder: str) -> None:
        """Make it appear in a bundle, locked.  Raises OSError."""
        path = os.path.join(bundle, CLAIM_FILE)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._fd = os.open(f"{path}.new", flags, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        self._append({"folder": folder})
        os.rename(f"{path}.new", path)

    def end(self, exit_code: int) -> None:
        """Tell the exit code to all who wait, once nothing of the container is left."""
        self._append({"exit_code": exit_code})
        self.close()

    def close(self) -> None:
        """Let go of this process's part."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, facts: dict[str, Any]) -> None:
        # A disk in memory that is full must not keep a container from ending.
        with contextlib.suppress(OSError):
            os.lseek(self._fd, 0, os.SEEK_END)
            os.write(self._fd, json.dumps(facts).encode() + b"\n")


class ClaimSeen:
    """The file as somebody else sees it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def of(cls, bundle: str) -> ClaimSeen | None:
        """Return that of a bundle; None while the container is made, or when it is gone."""
        try:
            fd = os.open(os.path.join(bundle, CLAIM_FILE), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        return cls(fd)

    @property
    def folder(self) -> str:
        """Where the record is; empty if nobody knows."""
        return str(self._facts().get("folder", ""))

    @property
    def exit_code(self) -> int | None:
        """What the container ended with; None if it has not, or nobody knows."""
        code = self._facts().get("exit_code")
        return code if isinstance(code, int) else None

    def is_held(self) -> bool:
        """Tell whether anybody looks after the container."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        return False

    def wait(self) -> None:
        """Return when nobody looks after it any more."""
        fcntl.flock(self._fd, fcntl.LOCK_SH)
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Forget it."""
        os.close(self._fd)

    def __enter__(self) -> ClaimSeen:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        for line in os.pread(self._fd, _MAX_BYTES, 0).splitlines():
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                facts |= found if isinstance(found, dict) else {}
        return facts
