"""The options of a mount of an image, as mount(8) and fusermount3 have them.

Whoever made an image chose its set-uid programs and device nodes.  Where root mounts it for all
users of a machine, they would be theirs to use, so ``nosuid`` and ``nodev`` hold unless the
opposite is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from lamina.errors import UnsupportedError, UsageError
from lamina.linux.mount import (
    ATTRIBUTES,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
)

_SAFE: Final = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
_OPPOSITES: Final = {"suid": "nosuid", "dev": "nodev", "exec": "noexec", "atime": "noatime"}


def mount_attributes(options: Sequence[str]) -> int:
    """Return the ``MOUNT_ATTR_*`` of options, each a name or several with commas; later ones win.

    Raises UsageError for one that is not known, and UnsupportedError where a user who is not root
    asks for ``suid`` or ``dev``.
    """
    attributes = MOUNT_ATTR_RDONLY | _SAFE
    for option in filter(None, (word.strip() for text in options for word in text.split(","))):
        if option in _OPPOSITES:
            attributes &= ~ATTRIBUTES[_OPPOSITES[option]]
        elif option in ATTRIBUTES:
            attributes |= ATTRIBUTES[option]
        else:
            known = ", ".join([*ATTRIBUTES, *_OPPOSITES])
            hint = "images are read-only" if option == "rw" else f"known are {known}"
            raise UsageError(f"mount option {option!r} is not known", hint=hint)
    if os.geteuid() != 0 and attributes & _SAFE != _SAFE:
        raise UnsupportedError(
            "the mount options suid and dev need root", hint="leave them out of -o"
        )
    return attributes


def option_names(attributes: int) -> list[str]:
    """Return the names of ``MOUNT_ATTR_*``, as in ``/proc/mounts``."""
    return [name for name, bit in ATTRIBUTES.items() if attributes & bit]
