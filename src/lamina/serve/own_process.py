"""This process as the one that answers for a mount, which a fork of it makes."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NoReturn

from lamina.content.lazy_image import LazyImage
from lamina.errors import Error, KernelError
from lamina.linux.fuse_device import abort_connection
from lamina.linux.mount import MNT_DETACH, UMOUNT_NOFOLLOW, unmount
from lamina.linux.mount_table import topmost_mount
from lamina.linux.superblock import SuperblockWatch
from lamina.serve.deny_guard import DenyGuard
from lamina.serve.device import Answering, Device, ServedMount
from lamina.serve.error_wire import encode_failure, read_report
from lamina.serve.mount_job import Placed
from lamina.serve.service.handover import MountHandover
from lamina.serve.service.lazy_open import LazilyOpenedImage
from lamina.serve.service.spec import MountSpec

_NUMBERS: Final = itertools.count(1)


class OwnProcess:
    """This process, as the one that answers for a mount: no supervisor stands behind it."""

    def __init__(self, image: LazyImage, spec: MountSpec, device: Device) -> None:
        self.number = f"{os.getpid()}-{next(_NUMBERS)}"
        self._image = LazilyOpenedImage(spec, image)
        self._device = device
        self._handover: MountHandover | None = None
        self._served: ServedMount | None = None
        self._guard: DenyGuard | None = None
        self._before = topmost_mount(spec.mountpoint)

    def hand_over(self, fds: dict[str, int], connection: int) -> None:
        """Begin to answer."""
        spec = self._image.spec
        self._handover = handover = MountHandover(
            self.number, spec, self._device.name, connection=connection
        )
        for name, fd in fds.items():
            handover.fds[name] = os.dup(fd)
        if "group" in fds:
            self._guard = DenyGuard(fds["group"], sorted(SuperblockWatch("erofs").before))
        answering = Answering(None, lambda _: None, is_apart=False)
        served = self._device.serve(handover, self._image, answering)
        served.start(inherited=False)
        self._served = served

    def place(self, make: Callable[[], Placed]) -> Placed:
        """Let a fork mount: were it a thread of this process, and the process killed at that
        moment, the kernel would wait for its own answer for ever, with a lock held that stops
        ``sync`` everywhere.
        """
        private = self._handover.fds.get("device", -1) if self._handover is not None else -1
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            # A copy of the device would keep the connection after our end.
            _place_and_exit(make, [] if private < 0 else [private], write_end)
        os.close(write_end)
        with self._undone():
            device_number, mount_id, watch = read_report(
                _report_of(pid, read_end),
                f"the process that mounts {self._image.spec.mountpoint} was killed",
            )
            return Placed(device_number, mount_id, tuple(watch))

    @contextlib.contextmanager
    def _undone(self) -> Iterator[None]:
        """Take a mount that was made away again if the block fails."""
        try:
            yield
        except BaseException:
            mountpoint = self._image.spec.mountpoint
            if topmost_mount(mountpoint) != self._before:
                with contextlib.suppress(Error):
                    unmount(mountpoint, MNT_DETACH | UMOUNT_NOFOLLOW)
            raise

    def mounted(self, watch: SuperblockWatch) -> None:
        """Tell all that keep something what to watch."""
        if self._guard is not None:
            self._guard.watch(watch.paths)
        if self._served is not None:
            self._served.mounted(watch)

    @property
    def ending_fd(self) -> int | None:
        """What polls as an error when the connection is over; None if nothing tells."""
        return self._handover.fds.get("device") if self._handover is not None else None

    def is_answering(self, watch: SuperblockWatch) -> bool:
        """Tell whether somebody may still read, in whatever mount namespace, and is answered."""
        if self._handover is None:
            return False
        fd = self.ending_fd
        return watch.alive if fd is None else not _is_over(fd)

    def close(self, watch: SuperblockWatch) -> None:
        """Stop; who still reads gets errors.  May be called again."""
        handover, self._handover = self._handover, None
        if handover is None:
            return
        device = handover.fds.get("device")
        in_use = watch.alive if device is None else not _is_over(device)
        if in_use and device is not None:
            if os.geteuid() == 0:
                abort_connection(handover.connection, device)
            else:
                # Only root ends a connection; this one ends with the process.
                return
        if self._served is not None:
            self._served.close()
        if self._guard is not None:
            self._guard.close(handed_over=in_use)
        handover.close()


def _is_over(fuse_fd: int) -> bool:
    """Tell whether a FUSE connection has ended."""
    poll = select.poll()
    poll.register(fuse_fd, 0)
    return bool(poll.poll(0))


def _report_of(pid: int, read_end: int) -> bytes:
    """Return what a fork said when it has ended: nothing if it was killed."""
    try:
        with open(read_end, "rb") as pipe:
            return pipe.read()
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.waitpid(pid, 0)


def _place_and_exit(make: Callable[[], Placed], private: Sequence[int], write_end: int) -> NoReturn:
    """Mount, say how it went, and end: as little Python as possible after a fork of threads."""
    report = b""
    try:
        for fd in private:
            os.close(fd)
        report = json.dumps(make()).encode()
    except Error as error:
        report = encode_failure(error)
    except OSError as error:
        report = encode_failure(KernelError(f"cannot mount an image: {error}"))
    finally:
        os.write(write_end, report)
        os._exit(0)
