"""The folder of what is about the mounts of a user: ``$LAMINA_RUNTIME``, else ``/run/lamina`` for
root and ``$XDG_RUNTIME_DIR/lamina`` or a private folder below ``/tmp`` for others.

What is in it ends with the machine's uptime, as mounts do.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from lamina.errors import StoreError, UsageError, os_hint

RUNTIME_VARIABLE: Final = "LAMINA_RUNTIME"


def state_directory() -> Path:
    """Return the state folder, made if need be.  Raises StoreError if it is not ours alone,
    UsageError for a relative path: processes that work in other folders share it.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if chosen := os.environ.get(RUNTIME_VARIABLE):
        path = Path(chosen)
        if not path.is_absolute():
            raise UsageError(f"the path in {RUNTIME_VARIABLE} is not absolute: {chosen}")
    elif os.geteuid() == 0:
        path = Path("/run/lamina")
    elif runtime:
        path = Path(runtime) / "lamina"
    else:
        path = Path(f"/tmp/lamina-{os.geteuid()}")  # noqa: S108 - checked below
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise StoreError(
            f"cannot use the state folder {path}: {error.strerror}", hint=os_hint(error)
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise StoreError(
            f"the state folder {path} is not a folder that only you can write to",
            hint=f"remove it, or set {RUNTIME_VARIABLE}",
        )
    return path
