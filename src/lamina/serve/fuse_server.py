"""A FUSE connection that is answered, whatever file system is behind it."""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import threading
import time
from typing import Final, Protocol, TypeAlias

from lamina.errors import Error, KernelError
from lamina.linux.fuse_device import abort_connection
from lamina.serve.fuse_lanes import Lanes
from lamina.serve.fuse_threads import MAX_READ_BYTES, Buffers, FuseThreads
from lamina.wire import fuse, fuse_reply

LOG: Final = logging.getLogger("lamina")

THREADS: Final = 16
"""How many requests of a connection can wait for the network at a time."""

CACHE_S: Final = 1 << 30
"""How long the kernel may keep names and attributes: an image never changes."""

Body: TypeAlias = bytes | memoryview

BACKGROUND: Final = 64
"""How many reads ahead, and others that nobody waits for, the kernel sends at a time."""
BACKGROUND_OF_LANES: Final = 4096

PAUSE_S: Final = 0.05
"""After a failure of the device, which is tried again; after each further one twice as long."""
LONGEST_PAUSE_S: Final = 1.0

# EPERM: it was never mounted.
_GONE = frozenset((errno.ENODEV, errno.EBADF, errno.ECONNABORTED, errno.ENOTCONN, errno.EPERM))
_AGAIN = frozenset((errno.EINTR, errno.ENOENT, errno.EAGAIN))
_PLAIN_FLAGS = fuse.InitFlag.ASYNC_READ | fuse.InitFlag.MAX_PAGES | fuse.InitFlag.INIT_EXT


class Filesystem(Protocol):
    """What a connection serves.  Called from several threads at once."""

    @property
    def flags(self) -> fuse.InitFlag:
        """The features that it takes if the kernel offers them."""

    def handle(self, request: fuse.Request, scratch: memoryview, /) -> Body:
        """Return the body of the reply; ``scratch`` is the thread's, for data.

        Raises lamina.errors.Error or OSError for the errno that the caller gets.
        """

    def quick(self, request: fuse.Request, scratch: memoryview, /) -> Body | None:
        """Return what :meth:`handle` would, if neither a network nor a disk has to be waited for;
        else None.
        """

    def forget(self, nodeid: int, lookups: int) -> None:
        """Take note that the kernel gave back so many lookups of ``nodeid``."""


class FuseServer:
    """Serves a mounted FUSE device until the file system is unmounted or aborted.

    Owns ``device``.  :meth:`start` comes after mounting: before, the device cannot be read.
    """

    def __init__(
        self,
        device: int,
        filesystem: Filesystem,
        threads: FuseThreads | None = None,
        *,
        max_read_bytes: int = MAX_READ_BYTES,
        max_readahead_bytes: int = MAX_READ_BYTES,
        lanes: Lanes | None = None,
    ) -> None:
        """Be answered by ``threads``, or by threads of its own; more of them with ``lanes``, of
        which each has its share.
        """
        self._lanes = lanes
        self._at_once = THREADS if lanes is None else lanes.threads
        self._device = device
        self._filesystem = filesystem
        self._max_read_bytes = max_read_bytes
        self._max_readahead_bytes = max_readahead_bytes
        self._shared = threads
        self._threads: FuseThreads | None = None
        self._changed = threading.Condition()
        self._serving: set[int] = set()
        """Who has read a request and not answered it, or is about to read one, by thread."""
        self._failures = 0
        self._draining = False
        self._ended = False
        self._ended_fd = -1

    @property
    def ended_fd(self) -> int:
        """Readable once the connection is over."""
        with self._changed:
            if self._ended_fd < 0:
                self._ended_fd = os.eventfd(self._ended, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            return self._ended_fd

    def take_over(self) -> bool:
        """Get what a server that is gone has read and not answered; call before :meth:`start`.

        Return False before Linux 6.9, which has forgotten these requests: nobody can answer them.
        """
        try:
            os.write(self._device, fuse_reply.encode_resend())
        except OSError as error:
            # ENOTCONN and ENODEV: the end of the connection, which the threads will see.
            return error.errno != errno.EINVAL
        return True

    def start(self) -> None:
        """Start answering.  Raises KernelError if there can be no thread."""
        os.set_blocking(self._device, False)
        self._threads = self._shared or FuseThreads(self._at_once)
        try:
            self._threads.add(self._device, self)
        except BaseException:
            self._threads = None
            raise

    @property
    def running(self) -> bool:
        """Whether the connection is there and answered."""
        return self._threads is not None and not self._ended

    def abort(self, device_number: int) -> None:
        """End the connection, whose mount has this ``st_dev``; needs root."""
        if self._device >= 0:
            abort_connection(device_number, self._device)

    def drain(self) -> None:
        """Answer nothing that is not being answered already; what is read meanwhile is left to
        :meth:`take_over`.
        """
        self._draining = True

    @property
    def busy(self) -> bool:
        """Whether requests are being answered."""
        return bool(self._serving)

    def close(self) -> None:
        """Wait for the end of the connection and of what is being answered, and close the device.

        May be called again.
        """
        if self._device < 0:
            return
        if self._threads is not None:
            with self._changed:
                self._changed.wait_for(lambda: self._ended and not self._serving)
            if self._threads is not self._shared:
                self._threads.close()
        os.close(self._device)
        self._device = -1
        if self._ended_fd >= 0:
            os.close(self._ended_fd)

    def serve_one(self, buffers: Buffers) -> None:
        """Read a request, let others wait for the next, and answer it."""
        me = threading.get_ident()
        self._serving.add(me)
        try:
            count = self._read(buffers.request)
            if count >= 0 and not self._draining:
                self._serve(buffers, count)
        finally:
            self._serving.discard(me)
            if self._ended:
                with self._changed:
                    self._changed.notify_all()

    def _serve(self, buffers: Buffers, count: int) -> None:
        """Answer a request: at once if that can be, for to wake another thread takes longer, else
        while others wait for the next one.
        """
        listens = False
        try:
            request = fuse.parse_request(buffers.request[:count])
            body = self._quick(request, buffers.scratch)
            if body is not None:
                self._answer_or_end(request, buffers.scratch, body)
                return
            if self._lanes is None:
                listens = len(self._serving) < self._at_once
                self._step_aside(listens)
                self._answer_or_end(request, buffers.scratch, None)
                return
            # It may wait for longer than what it was read into keeps it.
            request = fuse.parse_request(memoryview(bytes(buffers.request[:count])))
            if self._lanes.enter(request):
                listens = len(self._serving) < self._at_once
                self._step_aside(listens)
                self._answer_lane(self._lanes, request, buffers.scratch)
        except Exception:
            LOG.exception("a FUSE request that makes no sense, or an answer that failed")
        finally:
            if not listens:
                self._listen()

    def _answer_lane(self, lanes: Lanes, request: fuse.Request, scratch: memoryview) -> None:
        """Answer a request, and those that waited for it."""
        following: fuse.Request | None = request
        while following is not None:
            request = following
            try:
                self._answer_or_end(request, scratch, None)
            except Exception:
                # Those that wait for it must be answered all the same.
                LOG.exception("an answer to a FUSE request failed")
            following = lanes.leave(request)

    def _answer_or_end(self, request: fuse.Request, scratch: memoryview, body: Body | None) -> None:
        if not self._ended and not self._answer_or_fail(request, scratch, body):
            self._end()

    def _quick(self, request: fuse.Request, scratch: memoryview) -> Body | None:
        try:
            return self._filesystem.quick(request, scratch)
        except Exception as error:  # noqa: BLE001 - told where it happens again
            LOG.debug("not answered at once: %r", error)
            return None

    def _step_aside(self, listens: bool) -> None:
        """Let others take the next request: of this connection too, or of all but this one."""
        if listens:
            self._listen()
        elif self._threads is not None:
            self._threads.relieve()

    def _listen(self) -> None:
        if self._threads is not None and not self._ended:
            self._threads.listen(self._device)

    def _read(self, buffer: memoryview) -> int:
        """Return the length of a request; -1 if there is none, or the connection is over."""
        try:
            count = os.readv(self._device, [buffer])
        except OSError as error:
            if error.errno in _GONE:
                self._end()
                return -1
            if error.errno not in _AGAIN:
                self._pause(error)
            self._listen()
            return -1
        if not count:
            # The end of a file: nothing comes behind it.
            self._end()
            return -1
        self._failures = 0
        return count

    def _pause(self, error: OSError) -> None:
        """Wait before the device is tried again; of many failures ever fewer are told."""
        failures = self._failures
        self._failures += 1
        if failures & (failures + 1) == 0:
            LOG.error("reading the FUSE device failed, %d times: %s", failures + 1, error)
        time.sleep(min(PAUSE_S * 2.0 ** min(failures, 16), LONGEST_PAUSE_S))

    def _end(self) -> None:
        """Note that the connection is over."""
        assert self._threads is not None
        self._threads.remove(self._device)
        with self._changed:
            self._ended = True
            if self._ended_fd >= 0:
                os.eventfd_write(self._ended_fd, 1)
            self._changed.notify_all()

    def _answer_or_fail(
        self, request: fuse.Request, scratch: memoryview, body: Body | None
    ) -> bool:
        """Answer, with *body* if there is one; False once the connection is gone."""
        try:
            if body is None:
                self._answer(request, scratch)
            else:
                self._reply(request, body)
        except OSError as error:
            if error.errno in _GONE:
                return False
            # ENOENT: the caller was killed meanwhile.
            if error.errno != errno.ENOENT:
                LOG.exception("answering a FUSE request of kind %d failed", request.opcode)
                with contextlib.suppress(OSError):
                    os.writev(self._device, [fuse_reply.encode_error(request.unique, errno.EIO)])
        return True

    def _answer(self, request: fuse.Request, scratch: memoryview) -> None:
        if request.opcode in fuse.UNANSWERED:
            if request.opcode != fuse.Opcode.INTERRUPT:
                for nodeid, lookups in fuse.decode_forget(request):
                    self._filesystem.forget(nodeid, lookups)
            return
        try:
            body = self._body(request, scratch)
        except Error as error:
            reply = [fuse_reply.encode_error(request.unique, error.errno)]
        except OSError as error:
            reply = [fuse_reply.encode_error(request.unique, error.errno or errno.EIO)]
        except Exception:
            # A request without an answer would hang its caller, so even a defect is one.
            LOG.exception("a FUSE request of kind %d failed", request.opcode)
            reply = [fuse_reply.encode_error(request.unique, errno.EIO)]
        else:
            self._reply(request, body)
            return
        os.writev(self._device, reply)

    def _reply(self, request: fuse.Request, body: Body) -> None:
        os.writev(self._device, [fuse_reply.encode_reply_header(request.unique, len(body)), body])

    def _body(self, request: fuse.Request, scratch: memoryview) -> Body:
        if request.opcode == fuse.Opcode.INIT:
            return self._init(fuse.decode_init(request))
        if request.opcode == fuse.Opcode.DESTROY:
            return b""
        return self._filesystem.handle(request, scratch)

    def _init(self, offer: fuse.InitRequest) -> bytes:
        if offer.major != fuse.KERNEL_VERSION or offer.minor < fuse.OLDEST_MINOR_VERSION:
            raise KernelError(
                f"the kernel speaks FUSE {offer.major}.{offer.minor}, and 7.31 or later is needed",
                hint="Linux 5.4 is the oldest that works",
            )
        return fuse_reply.encode_init(
            fuse.InitReply(
                min(offer.minor, fuse.NEWEST_MINOR_VERSION),
                (self._filesystem.flags | _PLAIN_FLAGS) & offer.flags,
                min(offer.max_readahead_bytes, self._max_readahead_bytes),
                self._max_read_bytes // mmap.PAGESIZE,
                # What waits in a lane is not to keep back what is for others.
                BACKGROUND if self._lanes is None else BACKGROUND_OF_LANES,
            )
        )


def refuse(request: fuse.Request) -> OSError:
    """Return the answer to what a read-only file system does not do."""
    changing = request.opcode in (fuse.Opcode.SETATTR, fuse.Opcode.WRITE)
    code = errno.EROFS if changing else errno.ENOSYS
    return OSError(code, os.strerror(code))
