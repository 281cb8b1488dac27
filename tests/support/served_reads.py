"""One interface to whatever answers reads of a blob: a kernel made of sockets, for each device and
both ways of serving.

``SERVED`` names the combinations, and ``served_reads`` begins one of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol, cast

import pytest

from lamina.linux import fanotify
from lamina.opening.request import OpenRequest
from lamina.serve import fuse_server
from lamina.serve.device import Answering
from lamina.serve.devices import fanotify as serve_fanotify
from lamina.serve.devices import find_device
from lamina.serve.fuse_threads import FuseThreads
from lamina.serve.service.event_slots import create_slots
from lamina.serve.service.handover import MountHandover
from lamina.serve.service.lazy_open import LazilyOpenedImage
from lamina.serve.service.spec import MountSpec
from lamina.wire import fuse

SERVED = [
    (device, way) for device in ("fanotify", "fuse-blob") for way in ("service", "foreground")
]
SIZE_BYTES = 1 << 20
WAIT_S = 30.0
"""For what comes at once on any machine."""

# process_access_response() of Linux 6.18: a denial with any other errno is refused.
TAKEN = (
    errno.EPERM,
    errno.EIO,
    errno.EAGAIN,
    errno.EBUSY,
    errno.ETXTBSY,
    errno.ENOSPC,
    errno.EDQUOT,
)
_IN_HEADER = struct.Struct("=IIQQIIIHH")
_READ = struct.Struct("=QQIIQII")
_OUT_HEADER = struct.Struct("=IiQ")
_RESPONSE = struct.Struct("=iI")


class Blob:
    """A blob that never becomes complete; ``fails`` is raised for what is asked of it."""

    complete = False
    size_bytes = SIZE_BYTES

    def __init__(self, path: Path) -> None:
        path.write_bytes(b"\1" * SIZE_BYTES)
        self.path = path
        self.fd = os.open(path, os.O_RDWR)
        self.fails: BaseException | None = None
        self.asked: list[tuple[int, int]] = []

    def ensure(self, offset: int, size_bytes: int) -> None:
        self.asked.append((offset, size_bytes))
        if self.fails is not None:
            raise self.fails

    def make_readable(self, offset: int, size_bytes: int) -> None:
        self.ensure(offset, size_bytes)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        self.ensure(offset, len(buffer))
        return os.preadv(self.fd, [buffer], offset)

    def hold(self) -> None: ...

    def end_hold(self) -> None: ...

    def hold_through(self, _watch: object) -> None: ...

    def hold_if_complete(self) -> bool:
        return False


class Answer(NamedTuple):
    """What the kernel took as the answer to a read."""

    number: int
    code: int


class Kernel(Protocol):
    """The end that asks."""

    answers: queue.SimpleQueue[Answer]
    refusals: list[int]
    """Errnos of the next writes of answers."""
    shortages: list[int]
    """Errnos of the next reads of questions."""

    def ask(self, offset: int, size_bytes: int, blob: int = 0) -> int:
        """Ask for a part of a blob; return the number of the question."""


class _Ends:
    """A connected pair; what the serving end's calls do can fail."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self.refusals: list[int] = []
        self.shortages: list[int] = []
        self._lock = threading.Lock()
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        self.device = theirs.detach()
        self._inode = os.fstat(self.device).st_ino
        for name in ("read", "readv", "write", "writev"):
            patch.setattr(os, name, self._call(getattr(os, name), writes="write" in name))

    def is_device(self, fd: int) -> bool:
        with contextlib.suppress(OSError):
            return os.fstat(fd).st_ino == self._inode
        return False

    def _call(self, real: Callable[..., Any], *, writes: bool) -> Callable[..., Any]:
        def call(fd: int, *rest: Any) -> Any:
            if not self.is_device(fd):
                return real(fd, *rest)
            with self._lock:
                failures = self.refusals if writes else self.shortages
                if failures:
                    code = failures.pop(0)
                    raise OSError(code, os.strerror(code))
            if not writes:
                return real(fd, *rest)
            data = rest[0] if isinstance(rest[0], bytes) else b"".join(rest[0])
            self.take(bytes(data))
            return len(data)

        return call

    def take(self, data: bytes) -> None:
        """Take an answer, or refuse it as Linux does."""
        raise NotImplementedError


class FanotifyKernel(_Ends):
    """The other end of a group."""

    def __init__(self, patch: pytest.MonkeyPatch, blobs: Sequence[Blob]) -> None:
        super().__init__(patch)
        self._blobs = blobs
        self._waiting: set[int] = set()

    def ask(self, offset: int, size_bytes: int, blob: int = 0) -> int:
        number = os.dup(self._blobs[blob].fd)
        self._waiting.add(number)
        event = fanotify.Event(fanotify.FAN_PRE_ACCESS, number, 1, offset, size_bytes)
        self.ours.send(fanotify.encode_event(event))
        return number

    def take(self, data: bytes) -> None:
        number, response = _RESPONSE.unpack(data)
        code = response >> fanotify.FAN_ERRNO_SHIFT
        if response != fanotify.FAN_ALLOW and code not in TAKEN:
            raise OSError(errno.EINVAL, "no answer")
        if number not in self._waiting:
            raise OSError(errno.ENOENT, "nobody waits")
        self._waiting.discard(number)
        self.answers.put(Answer(number, code))


class FuseKernel(_Ends):
    """The other end of a FUSE device; reads block, as those of the real one do."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__(patch)
        os.set_blocking(self.device, True)
        self._next = 0

    def ask(self, offset: int, size_bytes: int, blob: int = 0) -> int:
        self._next += 2
        body = _READ.pack(0, offset, size_bytes, 0, 0, 0, 0)
        size = _IN_HEADER.size + len(body)
        node = fuse.ROOT_ID + 1 + blob
        header = _IN_HEADER.pack(size, fuse.Opcode.READ, self._next, node, 0, 0, 0, 0, 0)
        self.ours.send(header + body)
        return self._next

    def take(self, data: bytes) -> None:
        size, error, number = _OUT_HEADER.unpack_from(data)
        if size != len(data) or not -512 < error <= 0:
            raise OSError(errno.EINVAL, "no answer")
        self.answers.put(Answer(number, -error))


class Blobs(list[Blob]):
    """The blobs of an image, all of them open."""

    @property
    def readable(self) -> list[Blob]:
        """What is read of each."""
        return self


@contextlib.contextmanager
def served_reads(
    device: str, way: str, patch: pytest.MonkeyPatch, blob_count: int = 1
) -> Iterator[tuple[Kernel, list[Blob]]]:
    """Serve some blobs, by the code that serves them in real life."""
    for module in (serve_fanotify, fuse_server):
        patch.setattr(module, "PAUSE_S", 0.0, raising=False)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        blobs = [Blob(Path(folder) / f"{number}.data") for number in range(blob_count)]
        for blob in blobs:
            stack.callback(os.close, blob.fd)
        kernel = FanotifyKernel(patch, blobs) if device == "fanotify" else FuseKernel(patch)
        stack.callback(kernel.ours.close)
        stack.callback(_begin(device, way, kernel, blobs))
        yield kernel, blobs


def _begin(
    device: str, way: str, kernel: FanotifyKernel | FuseKernel, blobs: list[Blob]
) -> Callable[[], None]:
    asked = OpenRequest(reference="oci:x")
    spec = MountSpec(image=asked, mountpoint="/mnt", device=device, readahead_kib=0)
    opened = SimpleNamespace(
        blobs=Blobs(blobs), bootstrap=SimpleNamespace(size_bytes=0), close=lambda: None
    )
    image = LazilyOpenedImage(spec, cast("Any", opened))
    by_service = way == "service"
    answering = Answering(
        FuseThreads() if by_service else None, lambda _: None, is_apart=by_service
    )
    if device == "fanotify":
        fds = {"group": kernel.device, "slots": create_slots()}
        fds |= {f"blob.{number}": os.dup(blob.fd) for number, blob in enumerate(blobs)}
    else:
        fds = {"device": kernel.device}
    mount = MountHandover("1-1", spec, device, fds)
    served = find_device(device).serve(mount, image, answering)
    served.start(inherited=False)

    def end() -> None:
        if device != "fanotify":
            kernel.ours.shutdown(socket.SHUT_RDWR)
            kernel.shortages += [errno.ENODEV] * 1000
        served.close()
        if answering.threads is not None:
            answering.threads.close()
        mount.close()

    return end
