"""Run a container, or mount an image, and record what is read of it."""

from __future__ import annotations

import os
import select
import signal
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from lamina.cli import console
from lamina.cli.container_options import container_options
from lamina.cli.key_options import forget_passphrases
from lamina.cli.profile_files import write_profile
from lamina.errors import NotFoundError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from lamina.build.start_profile import Profile
    from lamina.content.lazy_image import LazyImage
    from lamina.content.read_log import ReadLog

DEVICE = "fuse-blob"
READAHEAD_KIB = 0
"""Each page is then read when it is touched, and no other."""


class Until(NamedTuple):
    """When recording ends: after so many seconds, or with a process."""

    seconds: float | None = None
    pid: int | None = None


def parse_until(text: str) -> Until:
    """Read ``SECONDS`` or ``pid:PID``.  Raises ValueError."""
    kind, colon, number = text.partition(":")
    if colon and kind == "pid" and number.isascii() and number.isdigit():
        return Until(pid=int(number))
    seconds = float(text)
    if not 0 < seconds < 1e6:
        raise ValueError
    return Until(seconds=seconds)


def record(args: Namespace) -> Profile:
    """Run the command of *args* once; return the profile.  Raises what running it raises."""
    from lamina.build.start_profile import decode_profile
    from lamina.cli.opening import index_and_tell, open_request
    from lamina.containers.foreground import run_container
    from lamina.opening.request import for_another_process
    from lamina.serve.run import RunRequest

    image = for_another_process(open_request(args, args.image))
    forget_passphrases()
    request = RunRequest(
        image=image,
        options=container_options(args),
        device=DEVICE,
        name=args.name,
        runtime=args.runtime,
        keep_changes=False,
        readahead_kib=READAHEAD_KIB,
    )
    with tempfile.NamedTemporaryFile("r", prefix="lamina-profile-") as file:
        planner = _recorder(file.name, args.command)
        if args.until is not None and args.until.pid is not None:
            raise UsageError("--until pid:PID goes with --mount")
        with _ended_after(args.until and args.until.seconds):
            run_container(request, indexer=index_and_tell, planner=planner)
        text = file.read()
    if not text:
        raise UnsupportedError("nothing was recorded, because the image was not mounted")
    return decode_profile(text)


def _recorder(path: str, command: list[str]) -> Callable[[LazyImage], Callable[[], None]]:
    """Record from before the mount and write the profile behind it, in the serving process."""

    def begin(image: LazyImage) -> Callable[[], None]:
        return record_into(image, path, command)

    return begin


def record_into(image: LazyImage, path: str, command: Sequence[str] = ()) -> Callable[[], None]:
    """Note what is read of *image* from now on; what is returned writes the profile to *path*.

    Call it before anybody reads.
    """
    reads = _log_of(image)

    def end() -> None:
        from lamina.build.start_record import profile_of_reads

        write_profile(path, profile_of_reads(image, reads.pages, command))

    return end


def record_mount(args: Namespace) -> Profile:
    """Mount the image on the folder of ``--mount`` and return the profile of what is read there
    until the time or the process is over that ``--until`` says, the mount is, or this process is
    told to stop.  Raises what opening and mounting raise, and NotFoundError without that process.
    """
    from lamina.build.start_record import profile_of_reads
    from lamina.cli.opening import open_native
    from lamina.serve.foreground import stop_signals
    from lamina.serve.mount import mount_image

    until = args.until or Until()
    with ExitStack() as stack:
        stop_fd = stack.enter_context(stop_signals(signal.SIGALRM))
        poll = stack.enter_context(select.epoll())
        poll.register(stop_fd, select.EPOLLIN)
        if until.pid is not None:
            poll.register(_process_fd(until.pid, stack), select.EPOLLIN)
        image = stack.enter_context(open_native(args, args.image))
        reads = _log_of(image)
        mounted = mount_image(image, args.mount, DEVICE, readahead_kib=READAHEAD_KIB)
        try:
            if until.seconds is not None:
                signal.setitimer(signal.ITIMER_REAL, until.seconds)
            console.info(f"{args.image} is mounted on {mounted.mountpoint}, and what is read noted")
            mounted.wait(poll.fileno())
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            mounted.close()
        return profile_of_reads(image, reads.pages, args.command)


def _process_fd(pid: int, stack: ExitStack) -> int:
    try:
        found = os.pidfd_open(pid)
    except OSError as error:
        raise NotFoundError(f"there is no process {pid}: {error.strerror}") from error
    stack.callback(os.close, found)
    return found


def _log_of(image: LazyImage) -> ReadLog:
    from lamina.content.read_log import ReadLog

    reads = ReadLog()
    image.metadata_reads = reads
    for blob in image.blobs:
        blob.record(reads)
    return reads


@contextmanager
def _ended_after(seconds: float | None) -> Iterator[None]:
    """Send SIGTERM to this process, which passes it on, if the block takes longer."""
    if seconds is None:
        yield
        return
    parent, pid = os.getpid(), os.fork()
    if pid == 0:
        os.closerange(3, 1 << 20)
        time.sleep(seconds)
        os.kill(parent, signal.SIGTERM)
        os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
