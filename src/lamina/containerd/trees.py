"""The mounted trees of lazy images: ``t/NUMBER`` below the root folder of the snapshotter.

The mounts belong to the mount service, and outlive this process; overlays of containers keep what
they were mounted from, whatever becomes of its place here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lamina.errors import KernelError, NotFoundError
from lamina.linux.mount_table import device_number
from lamina.opening.request import OpenRequest, for_another_process
from lamina.serve.mounts import MountState, is_broken, list_mounts, unmount
from lamina.serve.service.mounting import mount_by_service, mount_for_container
from lamina.serve.service.spec import MountSpec
from lamina.serve.start_touch import StartTouch

LOG: Final = logging.getLogger("lamina")


class Trees:
    """The trees below ``root``, which exists.  Threads share it."""

    def __init__(self, root: Path, device: str = "auto") -> None:
        (root / "t").mkdir(mode=0o700, exist_ok=True)
        # Mounts are known by their real paths, also below a root that is a link.
        self._root = (root / "t").resolve()
        self._device = device
        self.note_mount: Callable[[float], None] = lambda _: None
        """Is told how many seconds it took to mount a tree."""
        self._lock = threading.Lock()
        self._locks: dict[int, threading.Lock] = {}
        self._starting: dict[int, StartTouch] = {}

    def path(self, number: int) -> str:
        """Return the folder of a tree."""
        return str(self._root / str(number))

    def is_mounted(self, number: int) -> bool:
        """Tell whether something is mounted there, without asking its file system anything."""
        return self._device_of(self.path(number)) not in (None, self._device_of(str(self._root)))

    def is_served(self, number: int) -> bool:
        """Tell whether a tree is mounted, and not known to be broken."""
        if not self.is_mounted(number):
            return False
        try:
            return not is_broken(self.path(number))
        except KernelError as error:
            # One that is broken shows when it is read; nobody else should wait for that.
            LOG.warning("nobody tells whether tree %d is served: %s", number, error)
            return True

    @staticmethod
    def _device_of(path: str) -> int | None:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return device_number(fd)
        finally:
            os.close(fd)

    def mount(self, number: int, request: Callable[[], OpenRequest]) -> None:
        """Mount a tree by a request, unless it is mounted; anew if it is broken.

        Raises what mounting raises.
        """
        if self.is_served(number):
            return
        with self._lock:
            lock = self._locks.setdefault(number, threading.Lock())
        with lock:
            if not self.is_served(number):
                os.makedirs(self.path(number), mode=0o700, exist_ok=True)
                begun = time.monotonic()
                self._mount(number, self._spec(number, request()))
                self.note_mount(time.monotonic() - begun)

    def _mount(self, number: int, spec: MountSpec) -> None:
        if spec.image.start is None:
            mount_by_service(spec)
            return
        starting = StartTouch(spec.mountpoint)
        try:
            mount_for_container(spec, starting.write_end)
        except BaseException:
            starting.failed()
            raise
        starting.mounted()
        with self._lock:
            self._starting = {n: each for n, each in self._starting.items() if not each.is_over}
            self._starting[number] = starting

    def wait_for_start(self, number: int) -> None:
        """Return when the pages of a start have come that began to arrive with the image, or a
        program is kept from starting no longer.
        """
        with self._lock:
            starting = self._starting.get(number)
        if starting is not None:
            starting.wait()

    def _spec(self, number: int, request: OpenRequest) -> MountSpec:
        return MountSpec(
            image=for_another_process(request),
            mountpoint=self.path(number),
            device=self._device,
            # A container's overlay decides by itself; a plain view of the image has what the image
            # has, in a folder that only root can enter.
            options=("suid", "dev"),
            as_lower=True,
            # What an index is worth decides whether the layers are unpacked.
            early=False,
        )

    def broken(self) -> list[int]:
        """Return the trees that are mounted, and that nobody answers for any more.

        Raises KernelError if there is a mount service that does not answer.
        """
        paths = {self.path(number): number for number in self.numbers()}
        if not paths:
            return []
        broken = (each for each in list_mounts() if each.state is MountState.BROKEN)
        return [paths[each.record.mountpoint] for each in broken if each.record.mountpoint in paths]

    def unmount(self, number: int) -> None:
        """Take a tree away; containers that have it go on reading."""
        with self._lock:
            starting = self._starting.pop(number, None)
        if starting is not None:
            starting.end()
        with contextlib.suppress(NotFoundError):
            unmount(self.path(number), lazy=True)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(self.path(number))

    def numbers(self) -> list[int]:
        """Return the numbers that have a folder."""
        return [int(name) for name in os.listdir(self._root) if name.isdigit()]
