"""A fanotify group that this worker answers, and may have from another one.

One thread reads the group, others fill what is asked for.  It answers reads of this process's own
at once: they are of code that verifies what it has read, and must not wait for a thread that may
be waiting for them.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import select
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from lamina.errors import KernelError
from lamina.image.lazy_blob import LazyBlob
from lamina.image.native import NativeImage
from lamina.linux import fanotify
from lamina.linux.mount import SuperblockWatch
from lamina.serve.fanotify_answer import answer, outcome
from lamina.serve.service.event_slots import SLOTS, EventSlots, NotedEvent
from lamina.serve.service.kept import KeptMount
from lamina.serve.service.late_image import LateImage

LOG: Final = logging.getLogger("lamina")

THREADS: Final = 16
PAUSE_S: Final = 0.05
_BLOB: Final = "blob."


class FanotifyMount:
    """Serves ``mount``, whose descriptors stay the caller's; owns ``image``."""

    def __init__(
        self, mount: KeptMount, image: LateImage, on_resident: Callable[[str], None]
    ) -> None:
        self._mount = mount
        self.image = image
        self._on_resident = on_resident
        self._group = mount.fds["group"]
        self._slots = EventSlots(mount.fds["slots"])
        self._quiet = {
            int(name.removeprefix(_BLOB)): fd
            for name, fd in mount.fds.items()
            if name.startswith(_BLOB)
        }
        self._by_inode = {_inode(fd): number for number, fd in self._quiet.items()}
        self._blobs: dict[int, LazyBlob] | None = None
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
        noted = list(self._slots.noted())
        taken = {each.slot for each in noted}
        for slot in range(SLOTS):
            if slot not in taken:
                self._free.put(slot)
        for each in noted:
            self._work.put((each, False))
        names = [("read", self._read_group), *[("fill", self._fill_events)] * THREADS]
        for name, target in names:
            thread = threading.Thread(target=target, name=f"lamina-fan-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)
        return True

    def mounted(self, watch: SuperblockWatch) -> None:
        """Keep all blobs as long as the superblock that ``watch`` knows lives."""
        for blob in self.image.get().blobs:
            blob.hold_through(watch)
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
        if event.pid == os.getpid():
            self._finish(noted, 0, own=True)
        elif blob is None:
            LOG.warning(
                "fanotify tells of a file that is no blob of %s", self._mount.spec.reference
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
            blobs[noted.blob].ensure(event.offset, event.size_bytes)
            return
        # Its reader died before it knew the file: whichever it was, the range will be there.
        for blob in blobs.values():
            blob.ensure(event.offset, event.size_bytes)

    def _opened_blobs(self) -> dict[int, LazyBlob]:
        """The watched blobs, which write to their files without raising events."""
        with self._lock:
            if self._blobs is None:
                image = self.image.get()
                blobs = {number: image.blobs[number] for number in self._quiet}
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
        self._on_resident(self._mount.number)

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
        self.image.close()


def _inode(fd: int) -> tuple[int, int]:
    """Which file it is; (0, 0), which is none, if that cannot be told."""
    try:
        status = os.fstat(fd)
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


def hold_all(image: NativeImage, watch: SuperblockWatch) -> list[bool]:
    """Hold all blobs, which the kernel reads by itself; return which ones are complete."""
    complete = []
    for blob in image.blobs:
        blob.hold()
        blob.hold_through(watch)
        complete.append(blob.complete)
    return complete


def inherited_numbers(mounts: Iterable[KeptMount]) -> set[int]:
    """Return the numbers of all events that wait for an answer."""
    numbers = set()
    for mount in mounts:
        if "slots" in mount.fds:
            slots = EventSlots(mount.fds["slots"])
            numbers |= {noted.event.fd for noted in slots.noted()}
            slots.close()
    return numbers
