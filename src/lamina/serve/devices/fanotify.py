"""Device ``fanotify``: the kernel reads the cache files themselves and asks before it does.

Fastest where an image becomes complete while it is mounted: then no process of ours is involved in
its reads any more.  Needs CAP_SYS_ADMIN, Linux 6.14, and the node store on ext4, xfs or btrfs.  The
kernel reads the cache files at moments that nobody is told of, so nothing is evicted from them
while mounted.  What the device needs to fail closed is somebody who keeps the group: the holder of
the mount service, or :mod:`lamina.serve.deny_guard`.

A group may come from another process that has answered it.  One thread reads the group, others
fill what is asked for.  It answers reads of a service's own at once: they are of code that verifies
what it has read, and must not wait for a thread that may be waiting for them.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import select
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from lamina.errors import KernelError
from lamina.image.served_blob import ServedBlob
from lamina.linux import fanotify
from lamina.linux.superblock import SuperblockWatch
from lamina.posix.threads import start_thread
from lamina.serve.device import Answering, Held
from lamina.serve.event_free_fd import event_free_fd
from lamina.serve.fanotify_answer import answer, outcome
from lamina.serve.service.event_slots import SLOTS, EventSlots, NotedEvent, create_slots
from lamina.serve.service.handover import MountHandover
from lamina.serve.service.lazy_open import LazilyOpenedImage

if TYPE_CHECKING:
    from lamina.content.lazy_image import LazyImage
    from lamina.serve.mount_job import MountJob

LOG: Final = logging.getLogger("lamina")

THREADS: Final = 16
PAUSE_S: Final = 0.05
_BLOB: Final = "blob."


class FanotifyMount:
    """Serves ``mount``, whose descriptors and image stay the caller's."""

    def __init__(
        self, mount: MountHandover, image: LazilyOpenedImage, answering: Answering
    ) -> None:
        self._mount = mount
        self.image = image
        self._answering = answering
        self._group = mount.fds["group"]
        self._slots = EventSlots(mount.fds["slots"])
        self._quiet = {
            int(name.removeprefix(_BLOB)): fd
            for name, fd in mount.fds.items()
            if name.startswith(_BLOB)
        }
        self._by_inode = {_inode(fd): number for number, fd in self._quiet.items()}
        self._blobs: dict[int, ServedBlob] | None = None
        self._lock = threading.Lock()
        self._free = queue.SimpleQueue[int]()
        self._work = queue.SimpleQueue[tuple[NotedEvent, bool] | None]()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._draining = False
        self._filling: set[int] = set()
        self._threads: list[threading.Thread] = []
        self._may_leave = mount.record is not None
        self.resident = False

    def start(self, *, inherited: bool) -> bool:  # noqa: ARG002 - the slots tell
        """Begin with what is noted already, by another worker or while the mount was made."""
        if not self._answering.is_apart:
            # Then none of its own writes to the cache raises an event.
            self._opened_blobs()
        noted = list(self._slots.noted())
        taken = {each.slot for each in noted}
        for slot in range(SLOTS):
            if slot not in taken:
                self._free.put(slot)
        for each in noted:
            self._work.put((each, False))
        self._threads.append(start_thread(self._read_group, "lamina-fan-read"))
        for number in range(THREADS):
            try:
                self._threads.append(start_thread(self._fill_events, "lamina-fan-fill"))
            except KernelError as error:
                if not number:
                    raise
                LOG.warning("%d threads fill what fanotify asks for: %s", number, error)
                break
        return True

    def mounted(self, watch: SuperblockWatch) -> None:
        """Keep all blobs as long as the superblock that ``watch`` knows lives."""
        for blob in self.image.get().blobs:
            blob.hold_through(watch, self._mount.number)
        self._may_leave = True
        self.leave_if_complete()

    def drain(self) -> None:
        """Begin nothing new; what is read meanwhile stays noted."""
        self._draining = True

    @property
    def busy(self) -> bool:
        """Whether something is being answered."""
        return bool(self._filling)

    def _read_group(self) -> None:
        slot = self._free.get()
        try:
            with select.epoll() as poll:
                poll.register(self._group, select.EPOLLIN)
                poll.register(self._stop, select.EPOLLIN)
                while not any(fd == self._stop for fd, _ in poll.poll()) and not self._draining:
                    if self._read_event(slot):
                        self._take(slot)
                        slot = self._free.get()
        finally:
            self._free.put(slot)

    def _read_event(self, slot: int) -> bool:
        try:
            os.readv(self._group, [self._slots.target(slot)])
        except BlockingIOError:
            return False
        except OSError:
            # The kernel had no descriptor for it, and told its reader so.  Others wait behind it.
            LOG.exception("an event of a fanotify group cannot be read")
            time.sleep(PAUSE_S)
            return False
        return True

    def _take(self, slot: int) -> None:
        """Pass on an event that was read to a slot, or answer it."""
        try:
            event = self._slots.event(slot)
        except KernelError:
            # Nobody can tell which one it is, so nobody can answer it.
            LOG.exception("an event of a fanotify group makes no sense")
            self._give_back(slot)
            return
        blob = self._by_inode.get(_inode(event.fd))
        noted = NotedEvent(slot, event, blob)
        if event.pid == os.getpid() and self._answering.is_apart:
            self._finish(noted, 0, own=True)
        elif blob is None:
            LOG.warning(
                "fanotify tells of a file that is no blob of %s", self._mount.spec.image.reference
            )
            self._finish(noted, errno.EIO, own=True)
        else:
            self._slots.note_blob(slot, blob)
            self._work.put((noted, True))

    def _fill_events(self) -> None:
        me = threading.get_ident()
        while (item := self._work.get()) is not None:
            if self._draining:
                continue
            self._filling.add(me)
            try:
                self._serve_event(*item)
            except Exception:
                # A thread that ended would be missed: there are so many and no more.
                LOG.exception("serving an event of a fanotify group failed")
            finally:
                self._filling.discard(me)

    def _serve_event(self, noted: NotedEvent, own: bool) -> None:
        self._finish(noted, outcome(lambda: self._fill(noted)), own=own)
        self.leave_if_complete()

    def _finish(self, noted: NotedEvent, code: int, *, own: bool) -> None:
        try:
            answer(self._group, noted.event.fd, code)
        finally:
            self._give_back(noted.slot)
            if own:
                # Only the worker that has read an event has its descriptor.
                with suppress(OSError):
                    os.close(noted.event.fd)

    def _give_back(self, slot: int) -> None:
        self._slots.free(slot)
        self._free.put(slot)

    def _fill(self, noted: NotedEvent) -> None:
        event = noted.event
        if not event.size_bytes:
            raise KernelError("the kernel does not say which range of a cache file it wants")
        blobs = self._opened_blobs()
        if noted.blob is not None:
            blobs[noted.blob].make_readable(event.offset, event.size_bytes)
            return
        # Its reader died before it knew the file: whichever it was, the range will be there.
        for blob in blobs.values():
            blob.ensure(event.offset, event.size_bytes)

    def _opened_blobs(self) -> dict[int, ServedBlob]:
        """Return the watched blobs, which write to their files without raising events."""
        with self._lock:
            if self._blobs is None:
                image = self.image.get()
                blobs: dict[int, ServedBlob] = {n: image.blobs[n] for n in self._quiet}
                for number, blob in blobs.items():
                    blob.hold()
                    os.dup2(self._quiet[number], blob.fd, inheritable=False)
                self._blobs = blobs
        return self._blobs

    def leave_if_complete(self) -> None:
        """Take away the marks when every blob is complete, and say that nobody is needed."""
        if not self._may_leave or self._blobs is None:
            return
        if not all(blob.complete for blob in self._blobs.values()):
            return
        with self._lock:
            left, self.resident = self.resident, True
        if left:
            return
        for fd in self._quiet.values():
            fanotify.remove_mark(self._group, fd)
        self._answering.on_resident(self._mount.number)

    def close(self) -> None:
        """Stop: the mount is gone, or needs nobody."""
        os.eventfd_write(self._stop, 1)
        for _ in range(THREADS):
            self._work.put(None)
        # One that waits for a slot cannot be: there are more slots than threads at work.
        for thread in self._threads:
            thread.join()
        os.close(self._stop)
        self._slots.close()
        for blob in (self._blobs or {}).values():
            blob.end_hold()


def _inode(fd: int) -> tuple[int, int]:
    """Tell which file it is; (0, 0), which is none, if that cannot be told."""
    try:
        status = os.fstat(fd)
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


class Fanotify:
    """See the module."""

    name = "fanotify"
    rank = None
    needs_root = True
    # The descriptors of the blobs become ones of the group.
    shares_images = False
    needs_metadata_file = True

    def require(self) -> None:
        """Raise what :func:`lamina.linux.fanotify.create_group` raises."""
        fanotify.require_group()

    def hold(self, image: LazyImage, owner: str) -> Held:
        """Hold all blobs, which the kernel reads by itself: a reader goes on after the answer to
        its event, when nobody can tell whether it has read.
        """
        watch = SuperblockWatch("erofs")
        for blob in image.blobs:
            blob.hold()
            blob.hold_through(watch, owner)
        blobs = tuple(image.blobs)
        return Held(tuple(blob.complete for blob in blobs), blobs)

    def mount(self, job: MountJob) -> None:
        """Mount the cache files, of which the incomplete ones are watched."""
        opened = job.opened
        lazy = {
            index: path for index, path in enumerate(opened.blobs) if not opened.complete[index]
        }
        if lazy:
            with contextlib.ExitStack() as stack:
                job.hand_over(_set_up_group(lazy, stack))
        job.mount_erofs(opened.blobs)

    def serve(
        self, mount: MountHandover, image: LazilyOpenedImage, answering: Answering
    ) -> FanotifyMount:
        """Return what answers for the group."""
        return FanotifyMount(mount, image, answering)


def _set_up_group(paths: Mapping[int, str], stack: contextlib.ExitStack) -> dict[str, int]:
    """Watch the cache files of some blobs; return the descriptors that serve them, by name.

    They are closed with ``stack``.  What others have read of the files meanwhile is noted in the
    slots, to be answered by who serves.  Raises KernelError, UnsupportedError.
    """
    SuperblockWatch("erofs").require()
    group = fanotify.create_group()
    stack.callback(os.close, group)
    slots_fd = create_slots()
    stack.callback(os.close, slots_fd)
    fds = {"group": group, "slots": slots_fd}
    early: list[fanotify.Event] = []
    opened = {}
    for index, path in paths.items():
        opened[index] = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, opened[index])
        fanotify.add_mark(group, opened[index])
    for index, fd in opened.items():
        fds[f"{_BLOB}{index}"] = quiet = event_free_fd(group, fd, paths[index], early)
        stack.callback(os.close, quiet)
    slots = EventSlots(slots_fd)
    for slot, event in enumerate(early):
        slots.put(slot, event)
    slots.close()
    return fds


DEVICE: Final = Fanotify()
