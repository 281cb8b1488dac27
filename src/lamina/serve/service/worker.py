"""The process that opens images and answers the kernel.

It may be killed at any moment.  The next one gets the same descriptors: from a FUSE device it asks
for the unanswered requests again, and of a fanotify group it knows the unanswered events from
memory that all workers share.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from lamina.errors import Error, KernelError
from lamina.image.native import NativeImage
from lamina.image.residency import blob_coverage
from lamina.linux.mount import SuperblockWatch
from lamina.linux.process import (
    set_name,
    set_oom_score,
)
from lamina.serve.reported_error import encode_error
from lamina.serve.service.channel import Channel, ChannelError, Message
from lamina.serve.service.fanotify_mount import FanotifyMount, hold_all, inherited_numbers
from lamina.serve.service.fuse_mount import FuseMount, hold_complete
from lamina.serve.service.kept import KeptMount
from lamina.serve.service.last import outlive
from lamina.serve.service.late_image import LateImage
from lamina.serve.service.reserved import ReservedNumbers
from lamina.serve.service.spec import MountSpec, open_spec
from lamina.serve.service.state import ServiceState

LOG: Final = logging.getLogger("lamina")
DRAIN_POLL_S: Final = 0.002


class ServedMount(Protocol):
    """What a worker does for a mount."""

    image: LateImage

    def start(self, *, inherited: bool) -> bool:
        """Begin; ``inherited`` if another worker has served it before."""

    def mounted(self, watch: SuperblockWatch) -> None:
        """The superblock is there."""

    def drain(self) -> None:
        """Begin nothing new."""

    @property
    def busy(self) -> bool:
        """Whether something is being answered."""

    @property
    def resident(self) -> bool:
        """Whether no server is needed any more."""

    def leave_if_complete(self) -> None:
        """Find out whether that is so."""

    def close(self) -> None:
        """Stop; the mount is gone."""


def work(state: ServiceState, channel: Channel) -> None:
    """Be the worker until it is killed, or told to end."""
    set_name("lamina-worker")
    set_oom_score(0)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    reserved = ReservedNumbers(inherited_numbers(state.mounts.values()))
    # It would keep the service alive.  The socket stays: the last of all needs it.
    reserved.close(state.lock_fd)
    worker = Worker(channel, reserved)
    try:
        began = worker.run(list(state.mounts.values()))
    except ChannelError as error:
        # The supervisor forks another one, which has all that this one would have been sent.
        LOG.error("the worker ends, to be replaced: %s", error)  # noqa: TRY400 - one clear line
        return
    if began:
        outlive(state, worker.kept, known=True)
    else:
        # The one before is dead already, so this may be the last that has the descriptors.
        outlive(state, dict(state.mounts), known=False)


class Worker:
    """See the module; the main thread listens to the supervisor, others work."""

    def __init__(self, channel: Channel, reserved: ReservedNumbers) -> None:
        self._channel = channel
        self._reserved = reserved
        self.kept: dict[str, KeptMount] = {}
        """What it serves."""
        self._served: dict[str, ServedMount] = {}
        self._opened: dict[str, NativeImage] = {}
        self._lock = threading.Lock()
        self._outgoing = queue.SimpleQueue[tuple[str, dict[str, Any]]]()
        threading.Thread(target=self._tell, name="lamina-tell", daemon=True).start()

    def _say(self, op: str, **fields: object) -> None:
        """Tell the supervisor something, without waiting for it: it may be waiting for this one to
        receive.
        """
        self._outgoing.put((op, fields))

    def _tell(self) -> None:
        while True:
            op, fields = self._outgoing.get()
            try:
                self._channel.say(op, **fields)
            except ChannelError:
                LOG.exception("the supervisor cannot be told of %s", op)

    def run(self, mounts: list[KeptMount]) -> bool:
        """Serve what others have served, and do what the supervisor says, until it is gone.

        Return False if it has gone before anything began.
        """
        begin = self._channel.receive()
        if begin is None:
            return False
        for mount in mounts:
            self._serve(mount, inherited=True)
        at_once: dict[str, Callable[[Message], None]] = {
            "serve": self._serve_new,
            "mounted": self._mounted,
            "drain": self._drain,
        }
        aside: dict[str, Callable[[dict[str, Any]], None]] = {
            "open": self._open,
            "held": self._hold,
            "drop": self._drop,
            "status": self._status,
        }
        while (message := self._channel.receive()) is not None:
            op = message.body["op"]
            if op in aside:
                self._in_thread(aside[op], message.body)
            elif op in at_once:
                at_once[op](message)
        return True

    def _in_thread(self, work: Any, body: dict[str, Any]) -> None:
        def run() -> None:
            try:
                work(body)
            except Exception:
                LOG.exception("the worker of the mount service failed to %s", body["op"])
                if "number" in body:
                    # Without an answer who asked would wait for ever.
                    self._fail(body, KernelError(f"the mount service failed to {body['op']}"))

        threading.Thread(target=run, name=f"lamina-{body['op']}", daemon=True).start()

    def _fail(self, body: dict[str, Any], error: Error) -> None:
        failure = encode_error(error).decode()
        self._say("failed", number=body["number"], error=failure)

    def _open(self, body: dict[str, Any]) -> None:
        number = body["number"]
        try:
            spec = MountSpec.from_json(body["spec"])
            image = open_spec(spec)
            try:
                answer = _describe(image, spec)
            except BaseException:
                image.close()
                raise
        except Error as error:
            self._fail(body, error)
            return
        except Exception as error:
            LOG.exception("opening an image failed because of a defect")
            self._fail(body, Error(f"opening the image failed because of a defect: {error!r}"))
            return
        with self._lock:
            self._opened[number] = image
        self._say("opened", number=number, **answer)

    def _serve_new(self, message: Message) -> None:
        mount = KeptMount.decode(message.body["mount"], message.fds)
        self._serve(mount, inherited=False)
        self._say("serving", number=mount.number)

    def _serve(self, mount: KeptMount, *, inherited: bool) -> None:
        with self._lock:
            image = LateImage(mount.spec, self._opened.pop(mount.number, None))
        served: ServedMount
        if mount.device == "fanotify":
            served = FanotifyMount(mount, image, self._resident)
        else:
            served = FuseMount(mount, image)
        with self._lock:
            self.kept[mount.number] = mount
            self._served[mount.number] = served
        if not served.start(inherited=inherited):
            self._say("lost", number=mount.number)
        elif inherited and mount.spec.complete:
            self._in_thread(lambda _: image.get(), {"op": "complete"})

    def _resident(self, number: str) -> None:
        self._say("resident", number=number)

    def _mounted(self, message: Message) -> None:
        body = message.body
        served = self._served.get(body["number"])
        if served is not None:
            mount = self.kept[body["number"]]
            mount.record, mount.watch, mount.before = body["record"], body["watch"], []
            served.mounted(_known_superblock(body["watch"]))

    def _hold(self, body: dict[str, Any]) -> None:
        """Keep an image that is complete, and needs nobody, until its superblock is gone."""
        image = self._opened.get(body["number"])
        if image is None:
            # Opened by a worker that is gone, with all that it held.
            self._fail(body, KernelError("the mount service changed while the image was mounted"))
            return
        try:
            for blob in image.blobs:
                blob.hold_through(_known_superblock(body["watch"]))
        except Error as error:
            self._fail(body, error)
            return
        self._say("held", number=body["number"])

    def _drop(self, body: dict[str, Any]) -> None:
        with self._lock:
            image = self._opened.pop(body["number"], None)
            served = self._served.pop(body["number"], None)
            mount = self.kept.pop(body["number"], None)
        if image is not None:
            image.close()
        if served is not None:
            served.close()
        if mount is not None:
            for fd in mount.fds.values():
                self._reserved.close(fd)

    def _status(self, body: dict[str, Any]) -> None:
        """Tell of the mounts that are asked for, or of all."""
        wanted = body.get("mountpoints")
        mounts: dict[str, dict[str, Any]] = {}
        # Mounts of one image share what is here of it.
        sizes: dict[tuple[Path, ...], tuple[int, int]] = {}
        for number, served in list(self._served.items()):
            mount = self.kept.get(number)
            # None: dropped meanwhile.
            if mount is None or (wanted is not None and mount.spec.mountpoint not in wanted):
                continue
            try:
                mounts[mount.spec.mountpoint] = _status_of(served, sizes)
            except Error as error:
                mounts[mount.spec.mountpoint] = {"error": str(error)}
            except Exception:
                if number in self.kept:
                    raise
                # Closed while it was looked at.
        self._say("status", number=body["number"], mounts=mounts)

    def _drain(self, _message: Message) -> None:
        for served in self._served.values():
            served.drain()
        while any(served.busy for served in self._served.values()):
            time.sleep(DRAIN_POLL_S)
        logging.shutdown()
        os._exit(0)


def _status_of(
    served: ServedMount, sizes: dict[tuple[Path, ...], tuple[int, int]]
) -> dict[str, Any]:
    image = served.image.get()
    blobs = tuple(blob.path for blob in image.blobs)
    if blobs not in sizes:
        coverage = blob_coverage(image)
        ready_bytes = sum(blob.ready_bytes for blob in coverage)
        sizes[blobs] = ready_bytes, sum(blob.size_bytes for blob in coverage)
    served.leave_if_complete()
    ready_bytes, total_bytes = sizes[blobs]
    return {"ready_bytes": ready_bytes, "total_bytes": total_bytes, "resident": served.resident}


def _known_superblock(paths: list[str]) -> SuperblockWatch:
    watch = SuperblockWatch("erofs")
    watch.paths = tuple(paths)
    return watch


def _describe(image: NativeImage, spec: MountSpec) -> dict[str, Any]:
    """Hold what the kernel is to read by itself, and tell the client what it has to mount."""
    origin = image.origin
    reference = origin.reference if origin is not None else None
    named = str(reference) if reference is not None else spec.reference
    answer: dict[str, Any] = {
        "image": named,
        "digest": (reference.digest or "") if reference is not None else "",
        "pinned": str(origin.accepted or reference) if origin is not None and reference else None,
        "bootstrap": os.fspath(image.bootstrap_path),
        "blobs": [],
        "complete": [],
    }
    if spec.device != "fuse":
        watch = SuperblockWatch("erofs")
        if spec.device == "fanotify":
            answer["complete"] = hold_all(image, watch)
        else:
            answer["complete"] = hold_complete(image, watch)
        answer["blobs"] = [os.fspath(blob.path) for blob in image.blobs]
    return answer
