"""``lamina mount --foreground``: this process opens an image, mounts it, and serves until it is
gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from lamina.image.native import NativeImage
from lamina.linux.process import raise_file_limit, require_address_space, start_time_ticks
from lamina.serve.mount import Mount, mount_image
from lamina.serve.mounts import clear_mountpoint
from lamina.serve.state import MountRecord, MountRecords, claimed_mountpoint

LOG: Final = logging.getLogger("lamina")


@dataclass(frozen=True, slots=True, kw_only=True)
class MountRequest:
    """What to mount.

    ``reference`` and ``store`` are for the record; see
    :func:`lamina.serve.mount.mount_image` for ``device`` and ``options``.
    """

    open_image: Callable[[], NativeImage]
    reference: str
    mountpoint: str
    store: str
    device: str = "auto"
    options: tuple[str, ...] = ()


def serve_foreground(
    request: MountRequest, ready: Callable[[MountRecord], None] | None = None
) -> None:
    """Mount and serve in this process until the mount is gone, or SIGTERM, SIGINT or SIGHUP comes.

    ``ready`` is called when the tree can be read.  Must run in the main thread.  Raises UsageError
    if an image is mounted there already, and what opening and mounting raise.
    """
    raise_file_limit()
    require_address_space()
    mountpoint = os.path.realpath(request.mountpoint)
    with contextlib.ExitStack() as claim:
        claim.enter_context(claimed_mountpoint(mountpoint))
        clear_mountpoint(mountpoint)
        with _stop_signals() as stop_fd, request.open_image() as image:
            mounted = mount_image(
                image, request.mountpoint, request.device, options=request.options
            )
            records = MountRecords()
            record = _record(request, image, mounted)
            try:
                records.write(record)
                claim.close()
                if ready is not None:
                    ready(record)
                if not mounted.wait(stop_fd):
                    LOG.info("told to stop, unmounting %s", mounted.mountpoint)
            finally:
                mounted.close()
                records.remove(record)


def _record(request: MountRequest, image: NativeImage, mounted: Mount) -> MountRecord:
    origin = image.origin
    reference = origin.reference if origin is not None else None
    return MountRecord(
        image=str(reference) if reference is not None else request.reference,
        digest=(reference.digest or "") if reference is not None else "",
        mountpoint=mounted.mountpoint,
        device=mounted.device,
        device_number=mounted.device_number,
        pid=os.getpid(),
        start_ticks=start_time_ticks(os.getpid()) or 0,
        store=request.store,
    )


@contextlib.contextmanager
def _stop_signals() -> Iterator[int]:
    """Yield a descriptor that becomes readable when the process is told to stop."""
    stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def stop(_number: int, _frame: object) -> None:
        os.eventfd_write(stop_fd, 1)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stop_fd
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(stop_fd)
