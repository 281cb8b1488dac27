"""``lamina mount --foreground``: this process opens an image, mounts it, and serves until it is
gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from lamina.linux.process import raise_file_limit, require_address_space
from lamina.serve.mount import mount_opened
from lamina.serve.mount_records import MountRecord, MountRecords
from lamina.serve.mounting_lock import claimed
from lamina.serve.mounts import clear_mountpoint
from lamina.serve.service.spec import MountSpec, open_spec

if TYPE_CHECKING:
    from lamina.opening.open_image import Indexer

LOG: Final = logging.getLogger("lamina")


def serve_foreground(
    spec: MountSpec,
    ready: Callable[[MountRecord], None] | None = None,
    indexer: Indexer | None = None,
) -> None:
    """Mount and serve in this process until the mount is gone, or SIGTERM, SIGINT or SIGHUP comes.

    ``ready`` is called when the tree can be read.  Must run in the main thread.  Raises UsageError
    if an image is mounted there already, and what opening, indexing and mounting raise.
    """
    raise_file_limit()
    require_address_space()
    mountpoint = os.path.realpath(spec.mountpoint)
    with contextlib.ExitStack() as claim:
        claim.enter_context(claimed(mountpoint))
        clear_mountpoint(mountpoint)
        spec = spec.indexed_by(indexer)
        with stop_signals() as stop_fd, open_spec(spec) as image:
            mounted = mount_opened(image, spec)
            records, record = MountRecords(), mounted.record
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


@contextlib.contextmanager
def stop_signals(*more: signal.Signals) -> Iterator[int]:
    """Yield a descriptor that becomes readable when the process is told to stop, also by *more*."""
    stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def stop(_number: int, _frame: object) -> None:
        os.eventfd_write(stop_fd, 1)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, *more)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stop_fd
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(stop_fd)
