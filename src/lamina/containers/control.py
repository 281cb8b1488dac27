"""Stopping, killing, waiting for and removing containers, by whoever may."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import time
from pathlib import Path
from typing import Final

from lamina.containers.claim import ClaimSeen
from lamina.containers.places import Container, bundles, find_container
from lamina.containers.record import read_record, write_record
from lamina.containers.runtime_state import resume, running_fd, send_signal
from lamina.errors import NotFoundError, UsageError
from lamina.serve.container_folders import NAME, ContainerFolders
from lamina.serve.overlay import unmount_quietly
from lamina.serve.runtime import remove_container as remove_from_runtime
from lamina.store.containers import disk_bytes, remove_folder

_LOOK_S: Final = 0.1
KILLED: Final = 137
"""128 and SIGKILL: how a container ends that nobody looks after any more."""


def stop(container: Container, timeout_s: float | None = None, number: str | None = None) -> None:
    """Ask a container to end, kill it after *timeout_s* (None: what it was started with; below 0:
    never), and return when nothing of it runs.
    """
    record = container.record
    wait_s = record.stop_timeout_s if timeout_s is None else timeout_s
    fd = _first_process(container)
    if fd is not None:
        try:
            with contextlib.suppress(NotFoundError):
                send_signal(record.runtime, container.name, number or record.stop_signal)
                # A paused one gets no signal before it goes on.
                resume(record.runtime, container.name)
                if not _ends(fd, wait_s):
                    send_signal(record.runtime, container.name, "SIGKILL")
        finally:
            os.close(fd)
    wait(container)


def _first_process(container: Container) -> int | None:
    """Return a pidfd of a container's first process, which may have to be started yet; None if it
    has ended.
    """
    claim = ClaimSeen.of(container.bundle) if container.is_live else None
    with claim or contextlib.nullcontext():
        while True:
            # Asked first: what nobody looks after any more has been started or never will be.
            held = claim is not None and claim.is_held()
            fd = running_fd(container.record.runtime, container.name)
            if fd is not None or not held:
                return fd
            time.sleep(_LOOK_S)


def kill(container: Container, number: str) -> None:
    """Send a signal to a container.  Raises NotFoundError if it does not run."""
    send_signal(container.record.runtime, container.name, number)


def wait(container: Container) -> int:
    """Wait until a container has ended and return its exit code."""
    claim = ClaimSeen.of(container.bundle) if container.is_live else None
    if claim is not None:
        with claim:
            if claim.folder == container.folder:
                claim.wait()
                if claim.exit_code is not None:
                    return claim.exit_code
                tidy(container)
    record = read_record(container.folder)
    code = None if record is None else record.exit_code
    return KILLED if code is None else code


def tidy(container: Container) -> None:
    """End a container that nobody looks after any more, and note its end."""
    record = container.record
    # Who serves its image kills it and removes the bundle, unless that was killed too.
    if _is_there(container):
        remove_from_runtime(record.runtime, container.bundle, container.name)
        folders = ContainerFolders(container.name, container.bundle, container.folder)
        # The service lets go of a mount that needs no server, and so of the process it was for.
        unmount_quietly(folders.image)
        folders.remove(keep_changes=record.keeps)
    current = read_record(container.folder)
    if current is None or current.created_s != record.created_s:
        return
    if not record.keeps:
        remove_folder(Path(container.folder))
        return
    shutil.rmtree(os.path.join(container.folder, "work"), ignore_errors=True)
    if current.exit_code is None:
        fd = os.open(container.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            write_record(fd, current.ended(KILLED, time.time()))
        finally:
            os.close(fd)


def _is_there(container: Container) -> bool:
    """Tell whether the bundle is there of a container that nobody looks after: somebody looks after
    one that has got its name since.
    """
    claim = ClaimSeen.of(container.bundle)
    if claim is None:
        return False
    with claim:
        return claim.folder == container.folder and not claim.is_held()


def remove(name: str, store_root: Path, *, force: bool = False) -> int:
    """Remove a container with what it wrote and its log; returns the bytes on disk.

    Raises UsageError if it runs, unless *force* kills it; NotFoundError; StoreError.
    """
    container = find_container(name, store_root)
    if container.is_lost:
        tidy(container)
    elif container.is_live:
        if not force:
            raise UsageError(
                f"the container {name!r} runs", hint=f"`lamina stop {name}`, or `lamina rm -f`"
            )
        stop(container, 0.0, "SIGKILL")
    size_bytes = disk_bytes(Path(container.folder))
    remove_folder(Path(container.folder))
    return size_bytes


def remove_abandoned(name: str) -> int | None:
    """Remove what is left of a container whose makers were killed before it had a record; returns
    the bytes on disk, None if there is none such.
    """
    bundle = os.path.join(bundles(), name)
    claim = ClaimSeen.of(bundle) if NAME.fullmatch(name) else None
    if claim is None:
        return None
    with claim:
        folder = claim.folder
        if claim.is_held() or not folder or read_record(folder) is not None:
            return None
    size_bytes = disk_bytes(Path(folder))
    unmount_quietly(os.path.join(bundle, "image"))
    ContainerFolders(name, bundle, folder).remove(keep_changes=False)
    return size_bytes


def _ends(fd: int, wait_s: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if wait_s < 0 else wait_s * 1000))
