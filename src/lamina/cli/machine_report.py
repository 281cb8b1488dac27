"""What this machine offers for running images: kernel features, programs, rights."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from lamina.errors import Error

_RELEASES: Final = {
    "file-backed EROFS mounts": ((6, 12), "the devices fanotify and fuse-blob"),
}


class Feature(NamedTuple):
    """A feature, whether it is here, and what it is for or why it is missing."""

    name: str
    available: bool
    detail: str


def features() -> Iterator[Feature]:
    """Look at every feature; nothing is changed, or mounted for others to see."""
    if sys.platform != "linux":
        yield Feature("Linux", False, "mounts and containers need it; reading images does not")
        return
    release = kernel_release()
    root = os.geteuid() == 0
    yield Feature("root", root, "needed by run, and by mount with fanotify or fuse-blob")
    yield _filesystem("erofs", "kernel mounts of the file tree")
    for name, (needed, use) in _RELEASES.items():
        text = f"{use}; since Linux {needed[0]}.{needed[1]}"
        yield Feature(name, release >= needed, text)
    yield _probed("failed reads stay failed", "device fuse-blob", _whole_reads)
    yield _probed("fanotify pre-content events", "device fanotify", _fanotify)
    yield _probed("/dev/fuse", "devices fuse-blob and fuse", _fuse)
    yield _filesystem("overlay", "the writable layer of lamina run")
    for program, use in (
        ("runc", "lamina run"),
        ("crun", "lamina run, instead of runc"),
        ("fusermount3", "device fuse without root"),
    ):
        yield _program(program, use)


def kernel_release() -> tuple[int, int]:
    """(6, 18) of ``6.18.44-generic``; (0, 0) if it has another form."""
    parts = os.uname().release.split(".")
    numbers = ["".join(c for c in part if c.isdigit()) or "0" for part in (*parts, "0")]
    return int(numbers[0]), int(numbers[1])


def _filesystem(name: str, use: str) -> Feature:
    from lamina.linux.mount import filesystem_known

    try:
        return Feature(name, filesystem_known(name), use)
    except (Error, OSError) as error:
        return Feature(name, False, str(error))


def _whole_reads() -> None:
    from lamina.serve.short_read_probe import require_no_short_reads

    if os.geteuid() != 0:
        raise OSError("only root can try it")
    # Not /tmp, which may be in memory: EROFS is not mounted from there.
    require_no_short_reads("/var/tmp")  # noqa: S108 - the file has no name


def _fuse() -> None:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise OSError(f"it cannot be opened: {error.strerror}") from error


def _fanotify() -> None:
    from lamina.linux.fanotify import create_group

    os.close(create_group())
    if kernel_release() < (6, 14):
        raise OSError("since Linux 6.14")


def _probed(name: str, use: str, probe: Callable[[], None]) -> Feature:
    try:
        probe()
    except (Error, OSError) as error:
        return Feature(name, False, str(error))
    return Feature(name, True, use)


def _program(name: str, use: str) -> Feature:
    import shutil

    from lamina.serve.runtime import ADMIN_PATH

    found = None
    with contextlib.suppress(OSError):
        found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{ADMIN_PATH}")
    return Feature(name, found is not None, found or f"not installed; for {use}")
