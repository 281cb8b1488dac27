"""A bootstrap file, mapped."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lamina.erofs.reader import Bootstrap
from lamina.errors import FormatError, NotFoundError
from lamina.store.files import store_error


@contextmanager
def mapped_bootstrap(path: Path) -> Iterator[Bootstrap]:
    """Map the bootstrap at *path*; only what is used of it is read.

    Raises NotFoundError if there is no such file, StoreError if it cannot be read and FormatError
    if it is no bootstrap.
    """
    try:
        with path.open("rb") as file:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no bootstrap {path}") from error
    except OSError as error:
        raise store_error(f"map the bootstrap {path}", error) from error
    except ValueError as error:
        raise FormatError(f"{path} cannot be mapped as a bootstrap: {error}") from error
    try:
        with Bootstrap(buffer) as bootstrap:
            yield bootstrap
    finally:
        # A traceback or an unfinished iterator may still hold a view; the map goes away with it.
        with suppress(BufferError):
            buffer.close()
