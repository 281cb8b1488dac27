"""What a client of containerd says about the image that a layer belongs to.

Labels arrive from the image's own manifest as well: an image can say whatever it wants where the
client says nothing.  So they are claims, which :mod:`lamina.containerd.lazy_image` checks against
what the registry has, and nothing else is decided by them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final, NamedTuple

from lamina.containerd.snapshot import REF_LABEL
from lamina.errors import UsageError
from lamina.oci.manifest import NYDUS_BLOB_MARK, NYDUS_BOOTSTRAP_MARK
from lamina.oci.reference import Reference, is_digest, parse_reference

LOG: Final = logging.getLogger("lamina")

IMAGE_LABEL: Final = "containerd.io/snapshot/cri.image-ref"
"""The reference as the user typed it."""
MANIFEST_LABEL: Final = "containerd.io/snapshot/cri.manifest-digest"
"""The manifest of the image for the platform."""
LAYER_LABEL: Final = "containerd.io/snapshot/cri.layer-digest"
LAYERS_LABEL: Final = "containerd.io/snapshot/cri.image-layers"

_EXTRACTION: Final = "extract-"


class Claim(NamedTuple):
    """That a layer is of the image ``reference`` with this ``manifest``, and is to be ``chain``."""

    reference: Reference
    manifest: str
    chain: str


def read_claim(labels: Mapping[str, str]) -> Claim | None:
    """Return what the labels of a snapshot claim, None if that is nothing that can be used."""
    chain, text = labels.get(REF_LABEL, ""), labels.get(IMAGE_LABEL, "")
    manifest = labels.get(MANIFEST_LABEL, "")
    if not (is_digest(chain) and is_digest(manifest) and text):
        return None
    try:
        reference = parse_reference(text)
    except UsageError as error:
        LOG.warning("an image reference in the labels of a layer cannot be used: %s", error)
        return None
    return Claim(reference, manifest, chain) if reference.is_remote else None


def is_extraction(key: str, labels: Mapping[str, str]) -> bool:
    """Tell whether a snapshot is prepared to unpack a layer into, and not for a container."""
    return REF_LABEL in labels or own_key(key).startswith(_EXTRACTION)


def is_native(labels: Mapping[str, str]) -> bool:
    """Tell whether a layer is one that containerd cannot unpack: such layers say so themselves, by
    annotations that containerd passes on.
    """
    return NYDUS_BLOB_MARK in labels or NYDUS_BOOTSTRAP_MARK in labels


def namespace_of(key: str) -> str:
    """Return containerd's namespace in a key ``NAMESPACE/NUMBER/KEY``."""
    return key.partition("/")[0]


def own_key(key: str) -> str:
    """Return the client's own key in a key ``NAMESPACE/NUMBER/KEY``."""
    return key.split("/", 2)[-1]
