"""The metadata of an image that is to be the lower folder of an overlay.

overlayfs takes orders from attributes of its lower folders: what to hide, where a folder came from.
Its own are written by the kernel alone; those of an image would be orders of the image.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lamina.erofs.hidden_attributes import without_attributes
from lamina.erofs.reader import Bootstrap
from lamina.posix.unnamed_file import open_unnamed_file
from lamina.posix.write import write_all
from lamina.serve.device import fd_path
from lamina.store.files import store_errors

OVERLAY_ATTRIBUTES: Final = b"trusted.overlay."
"""What overlayfs reads of a lower folder, unless it was mounted with ``userxattr``."""


@contextlib.contextmanager
def lower_metadata(bootstrap: Bootstrap, path: Path) -> Iterator[str]:
    """Yield the path of the metadata of ``bootstrap``, which are at ``path``, without the
    attributes that overlayfs obeys; the kernel keeps the file itself once it is mounted.

    Raises FormatError for a tree that cannot be read, StoreError.
    """
    changed = without_attributes(bootstrap, OVERLAY_ATTRIBUTES)
    if changed is None:
        yield str(path)
        return
    with contextlib.ExitStack() as stack:
        with store_errors("write the metadata of a container's image"):
            file = stack.enter_context(open_unnamed_file(str(path.parent)))
            # Whole, or not at all: the kernel takes what is missing for zeros.
            write_all(file.fileno(), changed, 0)
        yield fd_path(file.fileno())
