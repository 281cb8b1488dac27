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
from lamina.serve.bundle import ContainerOptions, mount_targets, runtime_config, write_bundle
from lamina.serve.container_folders import ContainerFolders, create_folders
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
        """Open, mount, and write the bundle; return the paths that the runtime will mount on."""
        request, folders = self._request, self._folders
        self._image = image = request.open_image()
        self._mount = request.mount(image, folders.image)
        config, options = image.config.config, request.options
        user = resolve_user(image, config.user if options.user is None else options.user)
        document = runtime_config(config, user, options, folders.bundle)
        write_bundle(folders.bundle, document, options)
        return {"targets": mount_targets(document)}

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
    kept = request.keep_changes
    try:
        enter_private_mounts()
        server = start_server(lambda: ServedImage(request, folders, runtime))
        try:
            outcome, in_store = _run_served(request, folders, runtime, server)
        finally:
            unmount_quietly(folders.rootfs)
            server.stop()
            # A server that was killed left it.
            unmount_quietly(folders.image)
        kept = kept and in_store and has_changes(folders.upper)
    finally:
        folders.remove(keep_changes=kept)
    return RunResult(outcome.exit_code, folders.upper if kept else None)


def check_terminal(options: ContainerOptions) -> None:
    """A container's terminal is ours, so there must be one.  Raises UsageError."""
    if options.terminal and not any(os.isatty(fd) for fd in range(3)):
        raise UsageError(
            "-t asks for a terminal, but none of the standard streams is one", hint="leave -t out"
        )


def _run_served(
    request: RunRequest, folders: ContainerFolders, runtime: Runtime, server: RunServer
) -> tuple[Outcome, bool]:
    targets = server.wait_ready()["targets"]
    throwaway = not request.keep_changes or request.options.read_only
    in_store = mount_overlay(folders.image, folders.changes, folders.rootfs, throwaway=throwaway)
    interactive = request.options.interactive or request.options.terminal
    ended = False
    try:
        outcome = run_foreground(
            runtime,
            folders.bundle,
            folders.container_id,
            interactive=interactive,
            server_pid=server.pid,
        )
        ended = not outcome.failure
    finally:
        if not ended:
            remove_container(runtime, folders.bundle, folders.container_id)
    prune_mount_points(folders.upper, targets, folders.image)
    return outcome, in_store


def _named(options: ContainerOptions, container_id: str) -> ContainerOptions:
    """Give the container a host name: the host's own on its network, else the container's."""
    if options.hostname:
        return options
    return replace(
        options, hostname=os.uname().nodename if options.network == "host" else container_id[:63]
    )
