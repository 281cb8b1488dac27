"""The image of one container, as the process holds it that stays beside it: a mount of the service,
or one that this process serves itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from lamina.errors import Error
from lamina.linux.memory import forbid_core_dumps
from lamina.serve.container_options import ContainerOptions
from lamina.serve.container_user import add_groups, resolve_user
from lamina.serve.devices import needs_metadata_file
from lamina.serve.overlay import unmount_quietly
from lamina.serve.runtime import Runtime, remove_container
from lamina.serve.runtime_bundle import runtime_config
from lamina.serve.service.log_lines import LogLines
from lamina.serve.service.spec import Lease, MountSpec
from lamina.serve.toucher import follow_start

if TYPE_CHECKING:
    from lamina.image.base import Image
    from lamina.oci.manifest import RuntimeConfig
    from lamina.opening.open_image import Indexer
    from lamina.serve.container_folders import ContainerFolders
    from lamina.serve.run import Planner, RunRequest
    from lamina.serve.service.channel import Channel

LOG: Final = logging.getLogger("lamina")

_OPTIONS: Final = ("suid", "dev")
"""Of the mount: it is the root of a container, and in a folder that only root can enter."""


class _ContainerImage(ABC):
    """What both have in common."""

    def __init__(
        self,
        request: RunRequest,
        folders: ContainerFolders,
        runtime: Runtime,
        indexer: Indexer | None,
        start_pipe: int,
    ) -> None:
        """*start_pipe* is told what of the start has come (:mod:`lamina.serve.toucher`)."""
        self._request = request
        self._folders = folders
        self._runtime = runtime
        self._indexer = indexer
        self._start_pipe = start_pipe
        if request.image.has_secrets:
            forbid_core_dumps()

    def stop(self, *, orphaned: bool) -> None:
        """Unmount; after the caller's sudden end also kill the container and remove its folders."""
        if orphaned:
            remove_container(self._runtime, self._folders.bundle, self._folders.container_id)
            unmount_quietly(self._folders.rootfs)
        self._unmount()
        if orphaned:
            self._folders.remove(keep_changes=self._request.keep_changes)

    @abstractmethod
    def _unmount(self) -> None:
        """Unmount what was mounted, if anything was."""


class LeasedImage(_ContainerImage):
    """An image that the mount service serves, on a mount that is unmounted when this process ends,
    however it does.
    """

    def __init__(
        self,
        request: RunRequest,
        folders: ContainerFolders,
        runtime: Runtime,
        service: Channel,
        indexer: Indexer | None = None,
        start_pipe: int = -1,
    ) -> None:
        """*service* is a connection that keeps the service from ending before there is a mount."""
        super().__init__(request, folders, runtime, indexer, start_pipe)
        self._service = service
        self._log = LogLines()
        self._names: tuple[str, ...] = ()
        """By what log lines call the image and its blobs."""

    def start(self) -> dict[str, Any]:
        """Mount; return what the image and the options say of the container."""
        from lamina.image.folder import FolderImage
        from lamina.serve.service.mounting import mount_for_container

        request = self._request
        spec = MountSpec(
            image=request.image,
            mountpoint=self._folders.image,
            device=request.device,
            options=_OPTIONS,
            complete=request.complete,
            limit_rate=request.limit_rate,
            as_lower=True,
            readahead_kib=request.readahead_kib,
            lease=Lease.of_this_process(),
        )
        try:
            opened = mount_for_container(spec, self._start_pipe, self._indexer)
        finally:
            self._service.close()
            if self._start_pipe >= 0:
                os.close(self._start_pipe)
        self._names = (*opened.blob_ids, *filter(None, [opened.digest]))
        return _facts(FolderImage(self._folders.image), opened.runtime, request.options)

    def _unmount(self) -> None:
        from lamina.serve.mounts import unmount

        for level, text in self._log.warnings(self._names):
            LOG.log(level, "%s", text)
        # What is left is unmounted by the service, which sees this process end.
        with contextlib.suppress(Error):
            unmount(self._folders.image, lazy=True)


class OwnImage(_ContainerImage):
    """An image that this process serves by itself."""

    def __init__(
        self,
        request: RunRequest,
        folders: ContainerFolders,
        runtime: Runtime,
        indexer: Indexer | None = None,
        planner: Planner | None = None,
        start_pipe: int = -1,
    ) -> None:
        """*planner* is asked what to fetch before the container starts."""
        super().__init__(request, folders, runtime, indexer, start_pipe)
        self._planner = planner
        self._ends: list[Callable[[], None]] = []
        """What is called at the end, the last first."""

    def start(self) -> dict[str, Any]:
        """Open and mount; return what the image and the options say of the container."""
        from lamina.opening.open_image import open_image
        from lamina.serve.mount import mount_image

        request = self._request
        # Who looks into the image, or fetches all of it, waits for the metadata anyway.
        early = self._planner is None and not request.complete
        early = early and not needs_metadata_file(request.device)
        image = open_image(request.image, indexer=self._indexer, early=early)
        self._ends.append(image.close)
        unmounted = None if self._planner is None else self._planner(image)
        mounted = mount_image(
            image,
            self._folders.image,
            device=request.device,
            options=_OPTIONS,
            as_lower=True,
            readahead_kib=request.readahead_kib,
        )
        if unmounted is not None:
            self._ends.append(unmounted)
        self._ends.append(mounted.close)
        follow_start(image, self._start_pipe)
        if request.complete:
            from lamina.content.residency import BackgroundFill

            image.close_with(BackgroundFill(image, bytes_per_s=request.limit_rate))
        return _facts(image, image.config.config, request.options)

    def _unmount(self) -> None:
        while self._ends:
            self._ends.pop()()


def _facts(image: Image, config: RuntimeConfig, options: ContainerOptions) -> dict[str, Any]:
    user = resolve_user(image, config.user if options.user is None else options.user)
    user = add_groups(image, user, options.groups_added)
    return {
        "document": runtime_config(config, user, options),
        "volumes": sorted(config.volumes),
        "stop_signal": config.stop_signal,
        "labels": config.labels,
    }
