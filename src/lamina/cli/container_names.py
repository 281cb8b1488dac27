"""Names of containers in files: ``--cidfile``."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator

from lamina.errors import Error, UsageError, os_hint


@contextlib.contextmanager
def written_id(path: str | None, name: str | None) -> Iterator[str | None]:
    """Write the name of a container that is about to be made into a new file, a random name if it
    has none, and yield it; the file is taken away again if the block raises.

    Raises UsageError if the file is there: it may be of a container that runs.
    """
    if path is None:
        yield name
        return
    name = name or secrets.token_hex(6)
    try:
        with open(path, "x") as file:
            file.write(name)
    except FileExistsError:
        raise UsageError(f"the file {path} is there already", hint="remove it first") from None
    except OSError as error:
        raise Error(f"cannot write {path}: {error.strerror}", hint=os_hint(error)) from error
    try:
        yield name
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
