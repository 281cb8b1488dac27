"""The threads that answer a FUSE connection, whatever file system is behind it."""

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
from lamina.wire import fuse, fuse_reply

LOG: Final = logging.getLogger("lamina")

THREADS: Final = 16
"""How many requests can wait for the network at a time; idle threads cost little."""

MAX_READ_BYTES: Final = 128 * 1024
"""The most that one READ asks for; also how far the kernel may read ahead."""

CACHE_S: Final = 1 << 30
"""How long the kernel may keep names and attributes: an image never changes."""

Body: TypeAlias = bytes | memoryview

PAUSE_S: Final = 0.05
"""After a failure of the device, which is tried again."""

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

    def forget(self, nodeid: int, lookups: int) -> None:
        """The kernel no longer knows ``nodeid`` from so many lookups."""


class FuseServer:
    """Serves a mounted FUSE device until the file system is unmounted or aborted.

    Owns ``device``.  :meth:`start` comes after mounting: before, the device cannot be read.
    """

    def __init__(
        self,
        device: int,
        filesystem: Filesystem,
        *,
        max_read_bytes: int = MAX_READ_BYTES,
        threads: int = THREADS,
    ) -> None:
        self._device = device
        self._filesystem = filesystem
        self._max_read_bytes = max_read_bytes
        self._thread_count = threads
        self._threads: list[threading.Thread] = []
        self._busy: set[int] = set()
        self._draining = False
        self.ended_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Readable once the connection is over."""

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
        """Start answering."""
        for number in range(self._thread_count):
            thread = threading.Thread(target=self._run, name=f"lamina-fuse-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    @property
    def running(self) -> bool:
        """Whether the connection is there and answered."""
        return any(thread.is_alive() for thread in self._threads)

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
        return bool(self._busy)

    def close(self) -> None:
        """Wait for the threads, which end with the connection, and close the device."""
        for thread in self._threads:
            thread.join()
        if self._device >= 0:
            os.close(self._device)
            os.close(self.ended_fd)
            self._device = -1

    def _run(self) -> None:
        # Shared, and touched: a page that had to be copied after a fork could not be when this
        # process is being killed, and the kernel would fail the request.
        request_buffer = memoryview(mmap.mmap(-1, fuse.SMALLEST_READ_BUFFER_BYTES))
        request_buffer[:] = bytes(len(request_buffer))
        # Anonymous memory, of which only what is used becomes resident.  It is not closed here:
        # the traceback of an error may still have a view of it.
        scratch = memoryview(mmap.mmap(-1, self._max_read_bytes))
        try:
            while self._serve_one(request_buffer, scratch):
                pass
        finally:
            os.eventfd_write(self.ended_fd, 1)

    def _serve_one(self, request_buffer: memoryview, scratch: memoryview) -> bool:
        try:
            count = os.readv(self._device, [request_buffer])
        except OSError as error:
            if error.errno in _AGAIN:
                return True
            if error.errno in _GONE:
                return False
            # A thread that ended would be missed: sixteen such failures, and nobody answers.
            LOG.exception("reading the FUSE device failed")
            time.sleep(PAUSE_S)
            return True
        if self._draining:
            return False
        me = threading.get_ident()
        self._busy.add(me)
        try:
            return self._answer_or_fail(fuse.parse_request(request_buffer[:count]), scratch)
        except Exception:
            LOG.exception("a FUSE request that makes no sense, or an answer that failed")
        finally:
            self._busy.discard(me)
        return True

    def _answer_or_fail(self, request: fuse.Request, scratch: memoryview) -> bool:
        """Answer; False once the connection is gone."""
        try:
            self._answer(request, scratch)
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
            os.writev(
                self._device, [fuse_reply.encode_reply_header(request.unique, len(body)), body]
            )
            return
        os.writev(self._device, reply)

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
                min(offer.max_readahead_bytes, self._max_read_bytes),
                self._max_read_bytes // mmap.PAGESIZE,
            )
        )


def refuse(request: fuse.Request) -> OSError:
    """Return the answer to what a read-only file system does not do."""
    changing = request.opcode in (fuse.Opcode.SETATTR, fuse.Opcode.WRITE)
    code = errno.EROFS if changing else errno.ENOSYS
    return OSError(code, os.strerror(code))
