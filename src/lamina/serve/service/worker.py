"""The process that opens images and answers the kernel.

It may be killed at any moment.  The next one gets the same descriptors: from a FUSE device it asks
for the unanswered requests again, and of a fanotify group it knows the unanswered events from
memory that all workers share.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
import time
from typing import Final

import msgspec

from lamina.content.lazy_image import LazyImage
from lamina.errors import Error, KernelError
from lamina.linux.process import (
    set_name,
    set_oom_score,
)
from lamina.linux.superblock import SuperblockWatch
from lamina.posix.threads import start_thread
from lamina.serve.device import Answering, ServedMount
from lamina.serve.devices import find_device
from lamina.serve.error_wire import ReportedError
from lamina.serve.fuse_threads import FuseThreads
from lamina.serve.service.channel import Channel, ChannelError, close_all
from lamina.serve.service.describe import describe_image
from lamina.serve.service.event_slots import noted_numbers
from lamina.serve.service.handover import MountHandover
from lamina.serve.service.lazy_open import LazilyOpenedImage
from lamina.serve.service.messages import (
    PAGE_MOUNTS,
    Cost,
    Coverage,
    Drain,
    Drop,
    Failed,
    Held,
    Hold,
    Lost,
    Message,
    Mounted,
    Open,
    Resident,
    Serve,
    Serving,
    Status,
    StatusPage,
    UnknownMessageError,
)
from lamina.serve.service.orphan_recovery import recover_service
from lamina.serve.service.reserved import ReservedNumbers
from lamina.serve.service.shared_images import SharedImages
from lamina.serve.service.state import ServiceState
from lamina.serve.toucher import follow_start

LOG: Final = logging.getLogger("lamina")
DRAIN_POLL_S: Final = 0.002


def work(state: ServiceState, channel: Channel) -> None:
    """Be the worker until it is killed, or told to end."""
    set_name("lamina-worker")
    set_oom_score(0)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    inherited = [mount.fds["slots"] for mount in state.mounts.values() if "slots" in mount.fds]
    reserved = ReservedNumbers(set().union(*map(noted_numbers, inherited)))
    # It would keep the service alive.  The socket stays: the last of all needs it.
    reserved.close(state.lock_fd)
    worker = Worker(channel, reserved)
    try:
        began = worker.run(list(state.mounts.values()))
    except KernelError as error:
        # The supervisor forks another one, which has all that this one would have been sent.
        LOG.error("the worker ends, to be replaced: %s", error)  # noqa: TRY400 - one clear line
        return
    if began:
        recover_service(state, worker.kept, known=True)
    else:
        # The one before is dead already, so this may be the last that has the descriptors.
        recover_service(state, dict(state.mounts), known=False)


class Worker:
    """See the module; the main thread listens to the supervisor, others work."""

    def __init__(self, channel: Channel, reserved: ReservedNumbers) -> None:
        self._channel = channel
        self._reserved = reserved
        self.kept: dict[str, MountHandover] = {}
        """What it serves."""
        self._served: dict[str, ServedMount] = {}
        self._images = SharedImages()
        self._answering = Answering(FuseThreads(), self._resident, is_apart=True)
        self._opened: dict[str, LazilyOpenedImage] = {}
        self._lock = threading.Lock()
        self._outgoing = queue.SimpleQueue[Message]()
        start_thread(self._tell, "lamina-tell")

    def _say(self, message: Message) -> None:
        """Tell the supervisor something, without waiting for it: it may be waiting for this one to
        receive.
        """
        self._outgoing.put(message)

    def _tell(self) -> None:
        while True:
            message = self._outgoing.get()
            try:
                self._channel.tell(message)
            except ChannelError:
                LOG.exception("the supervisor cannot be told of %s", message.__struct_config__.tag)

    def run(self, mounts: list[MountHandover]) -> bool:
        """Serve what others have served, and do what the supervisor says, until it is gone.

        Return False if it has gone before anything began.
        """
        begin = self._channel.receive()
        if begin is None:
            return False
        for mount in mounts:
            if mount.shares:
                self._note_further(mount)
            else:
                self._serve(mount, inherited=True)
        while True:
            try:
                received = self._channel.receive()
            except UnknownMessageError as error:
                LOG.error("the worker is told something odd: %s", error)  # noqa: TRY400 - clear
                continue
            if received is None:
                return True
            self._do(*received)

    def _do(self, message: Message, fds: list[int]) -> None:
        match message:
            case Serve(mount=described):
                self._serve_new(MountHandover.of(described, fds))
            case Mounted():
                self._mounted(message)
            case Drain():
                self._drain()
            case Open() | Hold() | Drop() | Status():
                self._in_thread(message, fds)
            case _:
                LOG.error("the worker is not to be told %r", message.__struct_config__.tag)

    def _serve_new(self, mount: MountHandover) -> None:
        if mount.shares:
            self._note_further(mount)
            return
        try:
            self._serve(mount, inherited=False)
        except KernelError as error:
            self._fail(mount.number, error)
        else:
            self._say(Serving(number=mount.number))

    def _note_further(self, mount: MountHandover) -> None:
        """Know a mount that shares the superblock, and what is served of it, with another one.

        The image stays open as it was opened for it: the start of another program may be arriving.
        """
        with self._lock:
            late = self._opened.get(mount.number)
            self.kept[mount.number] = mount
        if late is not None:
            _settle_holds(late, mount.number)

    def _in_thread(self, message: Open | Hold | Drop | Status, fds: list[int]) -> None:
        """Do what may wait for a registry or a disk."""
        tag = message.__struct_config__.tag
        try:
            start_thread(lambda: self._do_aside(message, fds), f"lamina-{tag}")
        except KernelError as error:
            LOG.error("the worker cannot %s: %s", tag, error)  # noqa: TRY400 - one clear line
            close_all(fds)
            self._fail(message.number, error)

    def _do_aside(self, message: Open | Hold | Drop | Status, fds: list[int]) -> None:
        try:
            match message:
                case Open():
                    self._open(message, fds)
                case Hold():
                    self._hold(message)
                case Drop():
                    self._drop(message.number)
                case Status():
                    self._status(message)
        except Error as error:
            self._fail(message.number, error)
        except Exception as error:
            # Without an answer who asked would wait for ever.
            tag = message.__struct_config__.tag
            LOG.exception("the worker of the mount service failed to %s", tag)
            what = f"the mount service failed to {tag} because of a defect: {error!r}"
            self._fail(message.number, KernelError(what))
        finally:
            close_all(fds)

    def _fail(self, number: str, error: Error) -> None:
        self._say(Failed(number=number, error=ReportedError.of(error)))

    def _open(self, message: Open, start_pipe: list[int]) -> None:
        late = self._images.open(message.spec)
        try:
            answer = describe_image(late.get(), message.spec, message.number)[0]
        except BaseException:
            self._images.give_back(late)
            raise
        with self._lock:
            self._opened[message.number] = late
        if start_pipe:
            follow_start(late.get(), start_pipe.pop())
        self._say(answer)

    def _serve(self, mount: MountHandover, *, inherited: bool) -> None:
        with self._lock:
            late = self._opened.pop(mount.number, None)
        if late is None:
            # The device is what was chosen, where the client let that be done for it.
            late = self._images.get(msgspec.structs.replace(mount.spec, device=mount.device))
        served = find_device(mount.device).serve(mount, late, self._answering)
        with self._lock:
            self.kept[mount.number] = mount
            self._served[mount.number] = served
        if not served.start(inherited=inherited):
            self._say(Lost(number=mount.number))
        elif inherited and mount.spec.complete:
            with contextlib.suppress(KernelError):
                start_thread(lambda: _open_quietly(late), "lamina-complete")

    def _resident(self, number: str) -> None:
        self._say(Resident(number=number))

    def _mounted(self, message: Mounted) -> None:
        served = self._served.get(message.number)
        if served is not None:
            mount = self.kept[message.number]
            known = mount.record is not None
            mount.record, mount.watch, mount.before = message.record, message.watch, ()
            if not known:
                served.mounted(SuperblockWatch.of(message.watch))

    def _hold(self, message: Hold) -> None:
        """Keep an image that is complete, and needs nobody, until its superblock is gone."""
        late = self._opened.get(message.number)
        if late is None:
            # Opened by a worker that is gone, with all that it held.
            raise KernelError("the mount service changed while the image was mounted")
        for blob in late.get().blobs:
            blob.hold_through(SuperblockWatch.of(message.watch), message.number)
        self._say(Held(number=message.number))

    def _drop(self, number: str) -> None:
        with self._lock:
            late = self._opened.pop(number, None)
            served = self._served.pop(number, None)
            mount = self.kept.pop(number, None)
        if served is not None:
            late = served.image
            served.close()
        if late is not None:
            _settle_holds(late, number)
            self._images.give_back(late)
        if mount is not None:
            for fd in mount.fds.values():
                self._reserved.close(fd)

    def _status(self, message: Status) -> None:
        """Tell a page of the mounts that are asked for."""
        wanted = message.mountpoints
        with self._lock:
            found = sorted(
                (mount.mountpoint, mount.shares or number)
                for number, mount in self.kept.items()
                if mount.mountpoint > message.after
                and (wanted is None or mount.mountpoint in wanted)
            )
        # Mounts of one image share what is here of it.
        known: dict[LazilyOpenedImage, Coverage] = {}
        mounts = {}
        for mountpoint, number in found[:PAGE_MOUNTS]:
            served = self._served.get(number)
            if served is None:
                # Dropped meanwhile.
                continue
            if served.image not in known:
                known[served.image] = _coverage(served.image)
            mounts[mountpoint] = known[served.image]
            served.leave_if_complete()
        more = len(found) > PAGE_MOUNTS and bool(mounts)
        self._say(StatusPage(number=message.number, mounts=mounts, more=more))

    def _drain(self) -> None:
        for served in self._served.values():
            served.drain()
        while any(served.busy for served in self._served.values()):
            time.sleep(DRAIN_POLL_S)
        logging.shutdown()
        os._exit(0)


def _settle_holds(late: LazilyOpenedImage, number: str) -> None:
    """Tidy up what was held for a mount that has ended, or needs nothing of its own."""
    for blob in late.opened.opened_blobs if late.opened is not None else ():
        blob.settle_hold(number)


def _open_quietly(late: LazilyOpenedImage) -> None:
    try:
        late.get()
    except Error as error:
        LOG.warning("an image cannot be completed: %s", error)


def _cost(image: LazyImage) -> Cost:
    spent = image.statistics
    return Cost(
        requests=spent.requests,
        fetched_bytes=spent.fetched_bytes,
        ahead_bytes=spent.ahead_bytes,
        copied_bytes=spent.copied_bytes,
        decoded_bytes=spent.decoded_bytes,
        waited_s=image.waited_s,
    )


def _coverage(late: LazilyOpenedImage) -> Coverage:
    """Tell what is here of an image that is open; another one is not opened for that, and no source
    is waited for, or one that is silent would make the service look dead.
    """
    image = late.opened
    if image is None or image.is_early:
        return Coverage()
    try:
        blobs = [image.blobs.at_hand(number) for number in range(len(image.blobs))]
        known = [blob for blob in blobs if blob is not None]
        if len(known) < len(blobs):
            return Coverage(cost=_cost(image))
        return Coverage(
            ready_bytes=sum(blob.ready_bytes for blob in known),
            total_bytes=sum(blob.chunk_bytes for blob in known),
            cost=_cost(image),
        )
    except (Error, ValueError) as error:
        # ValueError: closed while it was looked at.
        LOG.info("nobody can tell what is here of %s: %s", late.spec.image.reference, error)
        return Coverage()
