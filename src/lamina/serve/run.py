"""Run a container from an image that has not arrived: mount, overlay, bundle, runtime, and all of
it undone.

Everything is mounted in a private mount namespace, which the runtime inherits: other processes do
not see it, and the kernel takes it away with the last process in it, whatever happens to us.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from lamina.errors import UnsupportedError, UsageError
from lamina.linux.private_mounts import enter_private_mounts
from lamina.serve.bundle import (
    ContainerOptions,
    runtime_config,
    write_config,
    write_etc_files,
)
from lamina.serve.container_folders import ContainerFolders, create_folders
from lamina.serve.container_mounts import place_mounts, wanted_mounts
from lamina.serve.container_user import resolve_user
from lamina.serve.overlay import (
    has_changes,
    mount_overlay,
    prune_mount_points,
    unmount_quietly,
)
from lamina.serve.run_server import RunServer, start_server
from lamina.serve.runtime import Outcome, Runtime, find_runtime, remove_container, run_foreground

if TYPE_CHECKING:
    from lamina.image.native import NativeImage


class Unmountable(Protocol):
    """A mount that can be undone."""

    def close(self) -> None:
        """Unmount and stop serving."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What to run and how: ``open_image`` and ``mount`` are called in the serving process.

    ``mount`` gets the opened image and a folder.  ``keep_changes`` False is ``--rm``.
    """

    open_image: Callable[[], NativeImage]
    mount: Callable[[NativeImage, str], Unmountable]
    options: ContainerOptions
    store_root: str
    name: str | None = None
    runtime: str | None = None
    keep_changes: bool = True


@dataclass(frozen=True, slots=True)
class RunResult:
    """The exit code for the shell, and the folder with what the container wrote, if that is
    kept.
    """

    exit_code: int
    changes: str | None = None


class ServedImage:
    """The image of one container, as the serving process holds it."""

    def __init__(self, request: RunRequest, folders: ContainerFolders, runtime: Runtime) -> None:
        self._request = request
        self._folders = folders
        self._runtime = runtime
        self._image: NativeImage | None = None
        self._mount: Unmountable | None = None

    def start(self) -> dict[str, Any]:
        """Open and mount; return the ``config.json`` that the image and the options make."""
        request, folders = self._request, self._folders
        self._image = image = request.open_image()
        self._mount = request.mount(image, folders.image)
        config, options = image.config.config, request.options
        user = resolve_user(image, config.user if options.user is None else options.user)
        return {"document": runtime_config(config, user, options)}

    def stop(self, *, orphaned: bool) -> None:
        """Unmount; after the caller's sudden end also kill the container and remove its folders."""
        if orphaned:
            remove_container(self._runtime, self._folders.bundle, self._folders.container_id)
            unmount_quietly(self._folders.rootfs)
        if self._mount is not None:
            self._mount.close()
        if self._image is not None:
            self._image.close()
        if orphaned:
            self._folders.remove(keep_changes=self._request.keep_changes)


def run_container(request: RunRequest) -> RunResult:
    """Run a container in the foreground until it ends.

    Needs root, and a process of one thread that has nothing mounted of its own: it moves to a
    private mount namespace for good.  Raises lamina.errors.Error if the command was not started for
    a reason of ours; what the runtime itself refuses is in the exit code (125-127), and the runtime
    has told it on standard error.
    """
    if os.geteuid() != 0:
        raise UnsupportedError(
            "`lamina run` needs root", hint="run it as root, or mount the image and chroot"
        )
    check_terminal(request.options)
    runtime = find_runtime(request.runtime, "/run/lamina/runtime")
    folders = create_folders(request.store_root, request.name)
    request = replace(request, options=_named(request.options, folders.container_id))
    kept = False
    try:
        enter_private_mounts()
        server = start_server(lambda: ServedImage(request, folders, runtime))
        try:
            targets, in_store = _prepare(request, folders, server)
            kept = request.keep_changes and in_store
            outcome = _run_prepared(request.options, folders, runtime, server.pid)
            prune_mount_points(folders.upper, targets, folders.image)
        finally:
            unmount_quietly(folders.rootfs)
            server.stop()
            # A server that was killed left it.
            unmount_quietly(folders.image)
        kept = kept and has_changes(folders.upper)
    finally:
        # The memory that took the place of a folder which overlayfs cannot use.
        unmount_quietly(folders.changes)
        folders.remove(keep_changes=kept)
    return RunResult(outcome.exit_code, folders.upper if kept else None)


def check_terminal(options: ContainerOptions) -> None:
    """A container's terminal is ours, so there must be one.  Raises UsageError."""
    if options.terminal and not any(os.isatty(fd) for fd in range(3)):
        raise UsageError(
            "-t asks for a terminal, but none of the standard streams is one", hint="leave -t out"
        )


def _prepare(
    request: RunRequest, folders: ContainerFolders, server: RunServer
) -> tuple[list[str], bool]:
    """Make the bundle with its root; return the paths that are mounted on in it, and whether what
    the container writes goes to the store.
    """
    document, options = server.wait_ready()["document"], request.options
    throwaway = not request.keep_changes or options.read_only
    in_store = mount_overlay(folders.image, folders.changes, folders.rootfs, throwaway=throwaway)
    write_etc_files(folders.bundle, options)
    wanted = wanted_mounts(options, folders.bundle)
    document, targets = place_mounts(folders.rootfs, document, wanted)
    write_config(folders.bundle, document)
    return targets, in_store


def _run_prepared(
    options: ContainerOptions, folders: ContainerFolders, runtime: Runtime, server_pid: int
) -> Outcome:
    ended = False
    try:
        outcome = run_foreground(
            runtime,
            folders.bundle,
            folders.container_id,
            interactive=options.interactive or options.terminal,
            server_pid=server_pid,
        )
        ended = not outcome.failure
    finally:
        if not ended:
            remove_container(runtime, folders.bundle, folders.container_id)
    return outcome


def _named(options: ContainerOptions, container_id: str) -> ContainerOptions:
    """Give the container a host name: the host's own on its network, else the container's."""
    if options.hostname:
        return options
    return replace(
        options, hostname=os.uname().nodename if options.network == "host" else container_id[:63]
    )
