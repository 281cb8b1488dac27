"""Run a container from an image that has not arrived: mount, overlay, bundle, runtime, and all of
it undone.

The image is a mount of the service like any other, which further containers of it share.  All else
is mounted in a private mount namespace, which the runtime inherits: other processes do not see it,
and the kernel takes it away with the last process in it, whatever happens to us.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from lamina.errors import Error, KernelError, UnsupportedError, UsageError
from lamina.linux.mount_table import MountEntry, read_mount_table
from lamina.linux.private_mounts import enter_private_mounts
from lamina.serve.container_etc import write_etc_files
from lamina.serve.container_folders import ContainerFolders, create_folders
from lamina.serve.container_mounts import WantedMount, place_mounts, wanted_mounts
from lamina.serve.container_options import ContainerOptions
from lamina.serve.detach import detach
from lamina.serve.mount_records import mountpoint_key
from lamina.serve.overlay import (
    has_changes,
    mount_overlay,
    prune_mount_points,
    unmount_quietly,
)
from lamina.serve.own_volumes import let_go, make_own_volumes, was_written
from lamina.serve.readahead import LAZY_KIB
from lamina.serve.run_image import LeasedImage, OwnImage
from lamina.serve.run_server import RunServer, start_server
from lamina.serve.runtime import Outcome, Runtime, find_runtime, remove_container, run_foreground
from lamina.serve.runtime_bundle import write_config
from lamina.serve.runtime_folder import RUNTIME_VARIABLE, state_directory
from lamina.serve.service.client import connect_or_start
from lamina.serve.toucher import StartGate
from lamina.store.node import default_root

if TYPE_CHECKING:
    from lamina.content.lazy_image import LazyImage
    from lamina.opening.open_image import Indexer
    from lamina.opening.request import OpenRequest
    from lamina.serve.service.channel import Channel

LOG: Final = logging.getLogger("lamina")

_METADATA: Final = re.compile(r".*/metadata/sha256/[0-9a-f]{64}|/proc/self/fd/[0-9]+", re.DOTALL)
"""What the kernel has mounted of an image: a file of a store, or one without a name."""


class Planner(Protocol):
    """Decides what of an image is fetched before its container starts."""

    def __call__(self, image: LazyImage, /) -> Callable[[], None]:
        """Fetch that, and return what is called once the image is unmounted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What to run and how.

    ``complete`` fetches the rest of the image in the background, no more than ``limit_rate`` bytes
    a second.  ``keep_changes`` False is ``--rm``; ``readahead_kib`` is that of
    :func:`lamina.serve.mount.mount_image`.
    """

    image: OpenRequest
    options: ContainerOptions
    device: str = "auto"
    complete: bool = False
    limit_rate: float | None = None
    name: str | None = None
    runtime: str | None = None
    keep_changes: bool = True
    readahead_kib: int = LAZY_KIB


@dataclass(frozen=True, slots=True)
class RunResult:
    """The exit code for the shell, and the folder with what the container wrote, if that is
    kept.
    """

    exit_code: int
    changes: str | None = None


@dataclass(slots=True)
class PreparedContainer:
    """A container whose root is mounted and whose bundle is written.

    ``keeps`` says that what it writes is kept, if it writes anything; ``keeps_all`` set by whoever
    runs it, that its folder is kept with whatever is in it.  ``changes`` is what was kept, once all
    is undone.
    """

    options: ContainerOptions
    folders: ContainerFolders
    runtime: Runtime
    server: RunServer
    facts: dict[str, Any]
    targets: list[str]
    keeps: bool
    keeps_all: bool = False
    changes: str | None = None

    @property
    def watched_pid(self) -> int | None:
        """The process without which the container has no files; None if there is none such."""
        return None if self.server.is_apart else self.server.pid


@contextlib.contextmanager
def prepared_container(
    request: RunRequest,
    *,
    indexer: Indexer | None = None,
    planner: Planner | None = None,
    made: Callable[[ContainerFolders], None] | None = None,
) -> Iterator[PreparedContainer]:
    """Have a container ready to be started as long as the block runs, and undo everything then.

    The image is mounted by the service, which serves all containers of it from one superblock; with
    a *planner*, or where no service can run, a process beside the container serves it.  *made* is
    called once the folders of the container are; *indexer* and *planner* are called in the process
    beside it, which has one thread then.

    Needs root, and a process of one thread that has nothing mounted of its own: it moves to a
    private mount namespace for good.  Raises lamina.errors.Error.
    """
    if os.geteuid() != 0:
        raise UnsupportedError(
            "`lamina run` needs root", hint="run it as root, or mount the image and chroot"
        )
    run_root = str(state_directory())
    runtime = find_runtime(request.runtime, os.path.join(run_root, "runtime"))
    folders = create_folders(request.image.store or str(default_root()), request.name, run_root)
    request = replace(request, options=_named(request.options, folders.container_id))
    kept = False
    prepared: PreparedContainer | None = None
    try:
        if made is not None:
            made(folders)
        gate = StartGate(is_wanted=request.image.start is not None)
        server = _start_server(request, folders, runtime, gate, (indexer, planner))
        try:
            facts = server.wait_ready()
            if server.is_apart:
                enter_private_mounts()
            prepared = _prepare(request, folders, runtime, server, facts)
            gate.wait(folders.image)
            yield prepared
            prune_mount_points(folders.upper, prepared.targets, folders.image)
        finally:
            gate.close()
            unmount_quietly(folders.rootfs)
            if server.is_apart:
                # A copy: the mount itself is the server's.
                unmount_quietly(folders.image)
            server.stop()
            # A server that was killed left it.
            unmount_quietly(folders.image)
        kept = prepared.keeps and (has_changes(folders.upper) or was_written(folders.changes))
        prepared.changes = folders.upper if kept else None
    finally:
        # The memory that took the place of a folder which overlayfs cannot use.
        unmount_quietly(folders.changes)
        keeps_all = prepared is not None and prepared.keeps_all
        folders.remove(keep_changes=kept or keeps_all)


def _start_server(
    request: RunRequest,
    folders: ContainerFolders,
    runtime: Runtime,
    gate: StartGate,
    callbacks: tuple[Indexer | None, Planner | None],
) -> RunServer:
    """Start the process that stays beside the container: outside the private mounts if the service
    is to see what it mounts, else inside.
    """
    indexer, planner = callbacks
    service = None if planner is not None else _service()
    if service is None:
        enter_private_mounts()
        return start_server(
            lambda: OwnImage(request, folders, runtime, indexer, planner, gate.serve())
        )
    with contextlib.closing(service):
        return start_server(
            lambda: LeasedImage(request, folders, runtime, service, indexer, gate.serve()),
            is_apart=True,
        )


def _service() -> Channel | None:
    """Return a connection to the mount service; None where none of this version can run."""
    try:
        return connect_or_start()
    except KernelError as error:
        LOG.info("the image is served beside the container: %s", error)
        return None


def _let_other_images_go(bundle: str, options: ContainerOptions) -> None:
    """Unmount the copies of other images' mounts that came into the private mounts, where they
    would be in use for as long as the container runs, whoever unmounts them outside.

    What is mounted below the *bundle* stays, and copies of what volumes are of.
    """
    sources = [os.path.realpath(volume.source) for volume in options.volumes]
    for entry in reversed(read_mount_table()):
        below = os.path.join(entry.mountpoint, "")
        is_wanted = below.startswith(f"{bundle}/") or any(
            f"{source}/".startswith(below) for source in sources
        )
        if not is_wanted and _is_image(entry):
            with contextlib.suppress(Error):
                detach(entry.mountpoint, entry.device, lazy=True)


def _is_image(entry: MountEntry) -> bool:
    """Tell whether a mount looks like one of ours, of whatever user and runtime folder."""
    if entry.filesystem == "erofs":
        return _METADATA.fullmatch(entry.source) is not None
    return (entry.filesystem, entry.source) == ("fuse", "lamina")


def check_terminal(options: ContainerOptions) -> None:
    """Raise UsageError if a terminal is asked for and there is none: a container's is ours."""
    if options.terminal:
        require_terminal()


def require_terminal() -> None:
    """Raise UsageError if none of the standard streams is a terminal."""
    if not any(os.isatty(fd) for fd in range(3)):
        raise UsageError(
            "-t asks for a terminal, but none of the standard streams is one", hint="leave -t out"
        )


def _prepare(
    request: RunRequest,
    folders: ContainerFolders,
    runtime: Runtime,
    server: RunServer,
    facts: dict[str, Any],
) -> PreparedContainer:
    """Make the bundle with its root."""
    options = request.options
    throwaway = not request.keep_changes or options.read_only
    in_store = mount_overlay(folders.image, folders.changes, folders.rootfs, throwaway=throwaway)
    write_etc_files(folders.bundle, options)
    wanted = wanted_mounts(options, folders.bundle)
    own = make_own_volumes(folders.image, folders.changes, options, facts["volumes"])
    wanted += [WantedMount(volume.target, volume.source) for volume in own]
    try:
        document, targets = place_mounts(folders.rootfs, facts["document"], wanted)
    finally:
        let_go(own)
    _let_other_images_go(folders.bundle, options)
    write_config(folders.bundle, document)
    keeps = request.keep_changes and in_store
    return PreparedContainer(options, folders, runtime, server, facts, targets, keeps)


def run_prepared(prepared: PreparedContainer) -> Outcome:
    """Run a container with the standard streams of this process until it ends."""
    folders, options, ended = prepared.folders, prepared.options, False
    try:
        outcome = run_foreground(
            prepared.runtime,
            folders.bundle,
            folders.container_id,
            interactive=options.interactive or options.terminal,
            server_pid=prepared.watched_pid,
            stop_timeout_s=options.stop_timeout_s,
        )
        ended = not outcome.failure
    finally:
        if not ended:
            remove_container(prepared.runtime, folders.bundle, folders.container_id)
    return outcome


def _named(options: ContainerOptions, container_id: str) -> ContainerOptions:
    """Give the container a host name, the host's own on its network, else the container's; and a
    control group below the one that is asked for, which no container of another runtime folder has.
    """
    group = container_id
    if chosen := os.environ.get(RUNTIME_VARIABLE):
        group += f"-{mountpoint_key(os.path.realpath(chosen))[:8]}"
    here = os.uname().nodename if options.network == "host" else container_id[:63]
    return replace(
        options,
        hostname=options.hostname or here,
        cgroup_path=os.path.join(options.cgroup_parent, group),
    )
