"""Where the files of one container are: its bundle in memory, its changes in the node store.

::

    /run/lamina/containers/ID/     bundle: config.json, hosts, …, image (mount), rootfs (mount)
    STORE/containers/ID/           upper (changes), work (overlayfs's own)
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
from typing import Final, NamedTuple

from lamina.errors import StoreError, UsageError

LOG: Final = logging.getLogger("lamina")

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class ContainerFolders(NamedTuple):
    """The folders of one container; see the module."""

    container_id: str
    bundle: str
    changes: str

    @property
    def image(self) -> str:
        """Where the read-only image is mounted."""
        return os.path.join(self.bundle, "image")

    @property
    def rootfs(self) -> str:
        """Where the container's root is mounted."""
        return os.path.join(self.bundle, "rootfs")

    @property
    def upper(self) -> str:
        """What the container wrote."""
        return os.path.join(self.changes, "upper")

    def remove(self, *, keep_changes: bool) -> None:
        """Remove the folders once nothing is mounted in them; may be called again.

        As long as something is, everything stays: folders of the host may be mounted there.
        """
        for mountpoint in (self.image, self.rootfs):
            try:
                os.rmdir(mountpoint)
            except FileNotFoundError:
                continue
            except OSError as error:
                LOG.warning("%s is left: %s", self.bundle, error.strerror)
                return
        shutil.rmtree(self.bundle, ignore_errors=True)
        shutil.rmtree(os.path.join(self.changes, "work"), ignore_errors=True)
        if not keep_changes:
            shutil.rmtree(self.changes, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(self.changes))


def create_folders(store_root: str, name: str | None, run_root: str) -> ContainerFolders:
    """Make the folders of a new container; without a name it gets a random one.

    Raises UsageError for a name that is malformed or taken, StoreError where a folder cannot be
    made.
    """
    container_id = name if name is not None else secrets.token_hex(6)
    if not NAME.fullmatch(container_id):
        raise UsageError(
            f"{container_id!r} is no container name", hint="use letters, digits, '_', '.' and '-'"
        )
    bundle = os.path.join(run_root, "containers", container_id)
    changes = os.path.join(store_root, "containers", container_id)
    folders = ContainerFolders(container_id, bundle, changes)
    stop = f"`lamina rm -f {container_id}`"
    _make(bundle, container_id, f"another --name, or {stop}; if there is none, remove {bundle}")
    try:
        _make(changes, container_id, f"another --name, or `lamina rm {container_id}`")
    except BaseException:
        os.rmdir(bundle)
        raise
    for path in (folders.image, folders.rootfs):
        os.mkdir(path, 0o700)
    return folders


def check_ended(container_id: str, bundles: str) -> None:
    """Raise UsageError if a container of that name has a bundle in the folder of those."""
    bundle = os.path.join(bundles, container_id)
    if NAME.fullmatch(container_id) and os.path.isdir(bundle):
        raise UsageError(
            f"the container {container_id!r} runs", hint=f"if it runs no more, remove {bundle}"
        )


def _made(path: str) -> bool:
    """Make a folder unless the one above is not there, and tell whether it is made."""
    try:
        os.mkdir(path, 0o700)
    except FileNotFoundError:
        return False
    return True


def _make(path: str, container_id: str, choices: str) -> None:
    parent = os.path.dirname(path)
    try:
        os.makedirs(parent, mode=0o700, exist_ok=True)
        # The end of the last container beside it takes the parent away.
        while not _made(path):
            os.makedirs(parent, mode=0o700, exist_ok=True)
    except FileExistsError:
        raise UsageError(
            f"there is a container of the name {container_id!r} already",
            hint=f"choose {choices}",
        ) from None
    except OSError as error:
        raise StoreError(
            f"cannot make the folder {path} for the container: {error.strerror}"
        ) from error
