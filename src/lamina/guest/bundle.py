"""Put an image into the bundle that a runtime in the guest has made for it.

As a program, ``python -m lamina.guest.bundle``, it takes one JSON object on standard input and
prints one: mounting takes a process of one thread, which the server of the hub is not.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from lamina.errors import Error, UsageError
from lamina.guest.agent import GuestSettings, guest_request
from lamina.image.folder import FolderImage
from lamina.linux.memory import forbid_core_dumps
from lamina.oci.reference import parse_reference
from lamina.opening.request import OpenRequest, for_another_process
from lamina.serve.container_options import ContainerOptions
from lamina.serve.container_user import resolve_user
from lamina.serve.overlay import mount_overlay, unmount_quietly
from lamina.serve.runtime_bundle import runtime_config, write_config
from lamina.serve.service.mounting import mount_for_container
from lamina.serve.service.spec import MountSpec

_BUNDLES: Final = "bundles"


class PullOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the program is told."""

    image: str
    bundle: str
    settings: GuestSettings


class PullResult(msgspec.Struct, frozen=True, kw_only=True):
    """What it tells: the digest of the manifest, or an error with its exit code."""

    digest: str = ""
    error: str = ""
    exit_code: int = 0


def fill_bundle(order: PullOrder) -> str:
    """Mount an image as the ``rootfs`` of a bundle, which is an empty folder, and write the
    bundle's ``config.json``; the digest of the manifest that was proven.

    What a container writes stays in the work folder.  Raises UsageError for a folder that is not
    empty, and what :func:`lamina.guest.agent.guest_request` and mounting raise.
    """
    bundle = Path(order.bundle)
    if not bundle.is_absolute() or not bundle.is_dir() or os.listdir(bundle):
        raise UsageError("the bundle is no empty folder")
    request = for_another_process(guest_request(order.image, order.settings))
    own = Path(request.store or "").parent / _BUNDLES / os.urandom(8).hex()
    own.mkdir(mode=0o700, parents=True)
    try:
        return _mounted(request, own, bundle)
    except BaseException:
        for mountpoint in (bundle / "rootfs", own / "image"):
            unmount_quietly(str(mountpoint))
            with suppress(OSError):
                mountpoint.rmdir()
        raise


def _mounted(request: OpenRequest, own: Path, bundle: Path) -> str:
    lower, rootfs = own / "image", bundle / "rootfs"
    lower.mkdir(mode=0o755)
    spec = MountSpec(image=request, mountpoint=str(lower), options=("suid", "dev"), as_lower=True)
    opened = mount_for_container(spec, -1)
    rootfs.mkdir(mode=0o755)
    mount_overlay(str(lower), str(own), str(rootfs), throwaway=True)
    user = resolve_user(FolderImage(lower), opened.runtime.user)
    write_config(str(bundle), runtime_config(opened.runtime, user, ContainerOptions()))
    return parse_reference(opened.pinned or "").digest or ""


def main() -> int:
    """Do what the order on standard input says."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=PullOrder, dec_hook=_path)
    forbid_core_dumps()
    try:
        result = PullResult(digest=fill_bundle(order))
    except Error as error:
        result = PullResult(error=str(error), exit_code=error.exit_code)
    print(json.dumps(msgspec.structs.asdict(result)))  # noqa: T201 - this is its answer
    return 0


def _path(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError


if __name__ == "__main__":
    sys.exit(main())
