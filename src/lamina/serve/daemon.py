"""The process behind ``lamina mount``: it opens an image, mounts it, and serves until it is gone.

``start_daemon`` leaves it in the background and returns when the tree can be read, or raises what
went wrong there.  ``serve_foreground`` is the same in the calling process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NoReturn

from lamina.errors import Error, KernelError, UsageError
from lamina.image.native import NativeImage
from lamina.linux.process import set_name, start_time_ticks
from lamina.serve.mount import Mount, mount_image
from lamina.serve.mounts import MountState, list_mounts
from lamina.serve.reported_error import decode_error, encode_error
from lamina.serve.state import MountRecord, MountRecords

LOG: Final = logging.getLogger("lamina")

_READY: Final = b"ready "
_FAILED: Final = b"error "


@dataclass(frozen=True, slots=True, kw_only=True)
class MountRequest:
    """What to mount.

    ``open_image`` is called in the serving process, after it was forked, and must not ask anybody
    anything.  ``reference`` and ``store`` are for the record; see
    :func:`lamina.serve.mount.mount_image` for ``device`` and ``options``.
    """

    open_image: Callable[[], NativeImage]
    reference: str
    mountpoint: str
    store: str
    device: str = "auto"
    options: tuple[str, ...] = ()


def start_daemon(request: MountRequest) -> MountRecord:
    """Mount with a server in the background, and return its record when the tree can be read.

    The caller must have one thread.  The server's standard error goes to the record's log file.
    Raises UsageError if an image is mounted there already, and whatever Error the server met.
    """
    path = os.path.realpath(request.mountpoint)
    _refuse_second_mount(path)
    log_path = MountRecords().log_path(path)
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _become_daemon(str(log_path))
        _serve_and_exit(request, write_end)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        report = pipe.read()
    os.waitpid(pid, 0)
    if report.startswith(_READY):
        return MountRecord.decode(report[len(_READY) :])
    log_path.unlink(missing_ok=True)
    if report.startswith(_FAILED):
        raise decode_error(report[len(_FAILED) :])
    raise KernelError("the server of the mount ended before the tree could be read")


def serve_foreground(
    request: MountRequest, ready: Callable[[MountRecord], None] | None = None
) -> None:
    """Mount and serve in this process until the mount is gone, or SIGTERM, SIGINT or SIGHUP comes.

    ``ready`` is called when the tree can be read.  Must run in the main thread.  Raises as
    :func:`start_daemon` does.
    """
    _refuse_second_mount(os.path.realpath(request.mountpoint))
    with _stop_signals() as stop_fd, request.open_image() as image:
        mounted = mount_image(image, request.mountpoint, request.device, options=request.options)
        records = MountRecords()
        record = _record(request, image, mounted)
        try:
            records.write(record)
            if ready is not None:
                ready(record)
            if not mounted.wait(stop_fd):
                LOG.info("told to stop, unmounting %s", mounted.mountpoint)
        finally:
            mounted.close()
            records.remove(record)


def _refuse_second_mount(mountpoint: str) -> None:
    for record, state in list_mounts():
        if record.mountpoint == mountpoint and state is not MountState.DETACHED:
            broken = ", but its server is gone" if state is MountState.BROKEN else ""
            raise UsageError(
                f"{record.image} is mounted at {mountpoint} already{broken}",
                hint=f"lamina umount {mountpoint}",
            )


def _record(request: MountRequest, image: NativeImage, mounted: Mount) -> MountRecord:
    origin = image.origin
    reference = origin.reference if origin is not None else None
    return MountRecord(
        image=str(reference) if reference is not None else request.reference,
        digest=(reference.digest or "") if reference is not None else "",
        mountpoint=mounted.mountpoint,
        device=mounted.device,
        device_number=mounted.device_number,
        pid=os.getpid(),
        start_ticks=start_time_ticks(os.getpid()) or 0,
        store=request.store,
    )


@contextlib.contextmanager
def _stop_signals() -> Iterator[int]:
    """Yield a descriptor that becomes readable when the process is told to stop."""
    stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def stop(_number: int, _frame: object) -> None:
        os.eventfd_write(stop_fd, 1)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stop_fd
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(stop_fd)


def _become_daemon(log_path: str) -> None:
    """Leave the caller's session, terminal, folder and standard streams."""
    os.setsid()
    if os.fork() != 0:
        os._exit(0)
    os.chdir("/")
    os.umask(0o077)
    null = os.open(os.devnull, os.O_RDWR)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    for source, target in ((null, 0), (null, 1), (log, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(log)
    set_name("lamina-mount")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    LOG.handlers = [handler]
    LOG.setLevel(logging.INFO)
    LOG.propagate = False


def _serve_and_exit(request: MountRequest, write_end: int) -> NoReturn:
    def ready(record: MountRecord) -> None:
        _report(write_end, _READY + record.encode())

    code = 1
    try:
        serve_foreground(request, ready)
        code = 0
    except Error as error:
        LOG.error("%s", error)  # noqa: TRY400 - one clear line
        _report(write_end, _FAILED + encode_error(error))
    except BaseException:
        LOG.exception("the server ended because of a defect")
    finally:
        # No interpreter teardown: threads may still wait in the kernel for readers.
        logging.shutdown()
        os._exit(code)


def _report(write_end: int, message: bytes) -> None:
    """Answer the caller, once; it may have gone."""
    with contextlib.suppress(OSError):
        os.write(write_end, message)
        os.close(write_end)
