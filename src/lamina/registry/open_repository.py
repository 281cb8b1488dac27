"""Open the repository that a reference names, by its transport."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from lamina.errors import UsageError
from lamina.http.client_options import ClientOptions
from lamina.oci.reference import Reference
from lamina.registry.repository import Repository

HOSTS_DIRS_VARIABLE: Final = "LAMINA_HOSTS_DIR"
"""Folders of mirrors, divided by colons as those of containerd's ``config_path``."""


def open_repository(
    reference: Reference, *, write: bool = False, options: ClientOptions | None = None
) -> Repository:
    """Open the place that a reference names; nothing is fetched yet from a registry.

    With *write* a local place is created if it is not there, and a registry is asked for the
    right to push; mirrors are for reading.  Raises NotFoundError for a path
    that is not there, FormatError for one that is no image or a malformed ``hosts.toml``,
    UsageError for a transport that cannot be written.
    """
    match reference.transport:
        case "docker":
            return _open_registry(reference, options or ClientOptions(), write=write)
        case "oci":
            from lamina.registry.layout import LayoutRepository

            return LayoutRepository(reference, write=write)
        case "oci-archive":
            from lamina.registry.oci_archive import open_oci_archive

            return open_oci_archive(reference, write=write)
        case "docker-archive":
            from lamina.registry.docker_archive import open_docker_archive

            return open_docker_archive(reference, write=write)
        case _:
            raise UsageError(f"unknown transport {reference.transport!r}")


def _open_registry(reference: Reference, options: ClientOptions, *, write: bool) -> Repository:
    from lamina.registry.client import RegistryRepository

    roots = configured_dirs(options.hosts_dirs)
    if not roots:
        return RegistryRepository(reference, options, write=write)
    from lamina.registry.hosts_file import find_hosts

    hosts = find_hosts(roots, reference.registry)
    if hosts is None:
        return RegistryRepository(reference, options, write=write)
    if not write:
        from lamina.registry.mirrored import MirroredRepository

        return MirroredRepository(reference, options, hosts)
    # What is written goes to the registry itself, by what the file says of it.
    own = next((host for host in reversed(hosts) if not host.is_mirror), None)
    return RegistryRepository(reference, options, write=True, host=own)


def configured_dirs(given: Sequence[str] | None) -> tuple[str, ...]:
    """Return the folders of mirrors that were *given*, or those of the environment."""
    if given is not None:
        return tuple(given)
    return tuple(filter(None, os.environ.get(HOSTS_DIRS_VARIABLE, "").split(":")))


def open_for_attaching(reference: Reference, *, options: ClientOptions | None = None) -> Repository:
    """Open the place of an image for writing, to attach something to the image there.

    Raises UsageError for an archive, which is only ever written anew, and what
    :func:`open_repository` raises.
    """
    if reference.transport.endswith("-archive"):
        raise UsageError(
            f"nothing can be attached to an image in an archive ({reference.path})",
            hint=f"copy it out of it first: lamina copy {reference} oci:FOLDER:TAG",
        )
    return open_repository(reference, write=True, options=options)
