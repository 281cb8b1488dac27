"""One attempt to mount an image, whoever is to answer for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from lamina.linux import fuse_device, mount
from lamina.linux.mount_table import device_number, topmost_mount, unique_mount_id
from lamina.linux.superblock import superblock_folder
from lamina.opening.bootstrap_file import mapped_bootstrap
from lamina.serve.detach import detach
from lamina.serve.lower_metadata import lower_metadata
from lamina.serve.mount_options import option_names
from lamina.serve.mount_records import MountRecord
from lamina.serve.mounting_lock import mounting_lock
from lamina.serve.readahead import shorten_readahead
from lamina.serve.service.messages import Opened
from lamina.serve.service.spec import MountSpec


class Placed(NamedTuple):
    """A mount that has its place: ``st_dev`` of its files as ``major:minor``, its number among
    mounts (0 if it is not known), and the files in sysfs that live as long as its superblock.
    """

    device_number: str
    mount_id: int = 0
    watch: tuple[str, ...] = ()


class Host(Protocol):
    """Who is to answer for a mount that is being made."""

    def hand_over(self, fds: dict[str, int], connection: int) -> None:
        """Have it answered from now on; the descriptors stay the caller's."""

    def place(self, make: Callable[[], Placed]) -> Placed:
        """Call ``make``, which waits for answers, where nobody has to give them."""


@dataclass(slots=True)
class MountJob:
    """What a device needs to make a mount; ``attributes`` are ``MOUNT_ATTR_*``."""

    spec: MountSpec
    opened: Opened
    attributes: int
    host: Host
    placed: Placed | None = None
    handed_over: bool = field(default=False, init=False)
    """Whether the mount needs somebody who answers."""

    def hand_over(self, fds: dict[str, int], connection: int = 0) -> None:
        """Have the mount answered from now on; the descriptors stay the caller's."""
        self.handed_over = True
        self.host.hand_over(fds, connection)

    def mount_erofs(
        self, paths: Sequence[str], connection: int = 0, metadata: str | None = None
    ) -> None:
        """Mount the metadata, those of the image unless they are in another file, over the files of
        the blobs; ``connection`` is ``st_dev`` of the FUSE mount that has to be answered meanwhile.
        """
        with mounting_lock() as lock, self._metadata(metadata) as bootstrap:
            if connection:
                lock.note_connection(connection)
            self.placed = self.host.place(partial(self._place_erofs, bootstrap, paths))
        if not all(self.opened.complete):
            shorten_readahead(self.placed.watch, self.spec.readahead_kib)

    def _place_erofs(self, bootstrap: str, paths: Sequence[str]) -> Placed:
        options: list[tuple[str, str | None]] = [("device", path) for path in paths]
        mount_fd = mount.create_mount("erofs", bootstrap, options, self.attributes)
        with closing(mount_fd):
            watch = (superblock_folder(mount_fd),)
            return self._attach(mount_fd)._replace(watch=watch)

    def _attach(self, mount_fd: int) -> Placed:
        number = device_number(mount_fd)
        mount.attach_mount(mount_fd, self.spec.mountpoint)
        return Placed(f"{os.major(number)}:{os.minor(number)}", unique_mount_id(mount_fd))

    @contextlib.contextmanager
    def _metadata(self, given: str | None) -> Iterator[str]:
        if given is not None:
            yield given
            return
        path = Path(self.opened.bootstrap)
        if not self.spec.as_lower:
            yield str(path)
            return
        with mapped_bootstrap(path) as bootstrap, lower_metadata(bootstrap, path) as lower:
            yield lower

    @contextlib.contextmanager
    def fuse_mount(
        self, options: list[tuple[str, str | None]], attributes: int
    ) -> Iterator[tuple[int, int]]:
        """Yield a FUSE mount without a place that is answered, and its ``st_dev``; needs root."""
        device = fuse_device.open_device()
        with closing(device):
            mount_fd = fuse_device.create_fuse_mount(device, options, attributes)
            try:
                number = device_number(mount_fd)
                self.hand_over({"device": device}, number)
            except BaseException:
                os.close(mount_fd)
                raise
        with closing(mount_fd):
            yield mount_fd, number

    def place_fuse(self, options: list[tuple[str, str | None]]) -> None:
        """Mount a FUSE file system that all users may see; needs root."""
        with self.fuse_mount(options, self.attributes) as (mount_fd, _):
            self.placed = self.host.place(partial(self._attach, mount_fd))

    def place_unprivileged_fuse(self) -> None:
        """Mount a FUSE file system for this user alone, through fusermount3."""
        names = option_names(self.attributes)
        words = ["fsname=lamina", "subtype=lamina", "default_permissions", *names]
        device = fuse_device.mount_unprivileged(self.spec.mountpoint, words)
        with closing(device):
            entry = topmost_mount(self.spec.mountpoint)
            self.placed = Placed(entry.device if entry is not None else "")
            self.hand_over({"device": device})

    def record(self, pid: int = 0, start_ticks: int = 0) -> MountRecord:
        """Return the record of the mount that was made, which that process serves."""
        assert self.placed is not None
        record = self.record_of(self.placed)
        return msgspec.structs.replace(record, pid=pid, start_ticks=start_ticks)

    def record_of(self, placed: Placed) -> MountRecord:
        """Return the record of a mount that nobody serves yet."""
        return MountRecord(
            image=self.opened.image,
            digest=self.opened.digest,
            mountpoint=self.spec.mountpoint,
            device=self.spec.device,
            device_number=placed.device_number,
            mount_id=placed.mount_id,
            pid=0,
            start_ticks=0,
            store=self.spec.image.store or "",
        )

    def undo(self) -> None:
        """Take a mount away that was made; who was quick enough to use it may get errors."""
        if self.placed is not None and self.placed.device_number:
            detach(self.spec.mountpoint, self.placed.device_number, lazy=True)


@contextlib.contextmanager
def closing(fd: int) -> Iterator[None]:
    """Close a descriptor behind the block."""
    try:
        yield
    finally:
        os.close(fd)
