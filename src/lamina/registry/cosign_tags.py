"""What cosign has under ``ALGORITHM-HEX.SUFFIX``: lists of signatures and attestations that grow.

Each is an image manifest with a layer for every entry, which its annotations belong to, and a
configuration that says the same of the layers.  Source: cosign's ``SIGNATURE_SPEC.md``.
"""

from __future__ import annotations

import io
from typing import Final

import msgspec

from lamina.errors import AuthError, FetchError, FormatError, NotFoundError, UnsupportedError
from lamina.http.transient import TransientError
from lamina.oci.manifest import (
    OCI_CONFIG,
    OCI_MANIFEST,
    Descriptor,
    ImageConfig,
    Manifest,
    RootFS,
    describe,
    encode,
    parse_manifest,
)
from lamina.registry.repository import Repository

_LISTS: Final = (".sig", ".att")
"""Suffixes of lists; an SBOM takes the place of another, as with ``cosign attach sbom``."""


def push_tagged(repository: Repository, tag: str, media_type: str, data: bytes) -> None:
    """Store a manifest under a tag of cosign's; what is in such a list there already stays in it.

    Its layers and configuration must be there.  Of two writers at once the entries of one may be
    lost, as with cosign.  Raises what the repository raises.
    """
    ours = parse_manifest(data, f"manifest {tag}")
    theirs = _read(repository, tag) if tag.endswith(_LISTS) else None
    if theirs is None or not isinstance(ours, Manifest) or _has_all(ours, theirs):
        repository.push_manifest(tag, media_type, data)
    elif not _has_all(theirs, ours):
        more = [layer for layer in ours.layers if layer not in theirs.layers]
        push_list(repository, tag, (*theirs.layers, *more), theirs.annotations)


def push_list(
    repository: Repository,
    tag: str,
    layers: tuple[Descriptor, ...],
    annotations: dict[str, str] | None = None,
) -> Descriptor:
    """Store a list of entries whose blobs are there.  Raises what the repository raises."""
    diff_ids = tuple(layer.digest for layer in layers)
    config = encode(ImageConfig(rootfs=RootFS(diff_ids=diff_ids)))
    described = describe(OCI_CONFIG, config)
    repository.push_blob(described, io.BytesIO(config))
    new = Manifest(schema_version=2, media_type=OCI_MANIFEST, config=described, layers=layers)
    if annotations:
        new = msgspec.structs.replace(new, annotations=annotations)
    return repository.push_manifest(tag, OCI_MANIFEST, encode(new))


def _read(repository: Repository, tag: str) -> Manifest | None:
    """Return the list under a tag; None if there is none, or something else.

    Raises FetchError where a list may be that cannot be read now: nobody's entries are to be lost.
    """
    try:
        found = parse_manifest(repository.manifest(tag)[1], f"manifest {tag}")
    except (AuthError, TransientError):
        raise
    except (NotFoundError, FetchError, FormatError, UnsupportedError):
        return None
    return found if isinstance(found, Manifest) else None


def _has_all(one: Manifest, other: Manifest) -> bool:
    return all(layer in one.layers for layer in other.layers)
