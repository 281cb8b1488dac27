"""The configuration of a native or sealed image names the layers that the image is made of.

Who knows images by their configuration alone, as containerd names what it has unpacked by the chain
of ``diff_ids``, would else take one image for another: nobody unpacks the layers of these, which
would show it (OCI image configuration, ``rootfs.diff_ids``).  Their blobs are stored as they are,
so a blob's digest is its diff_id; that of the metadata layer is taken when the layer is read.  The
metadata names every chunk of every file, so the same diff_ids are the same tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from lamina.errors import IntegrityError

if TYPE_CHECKING:
    from lamina.oci.manifest import Manifest
    from lamina.opening.manifest import FoundManifest


def check_layers(found: FoundManifest, diff_ids: Sequence[str], metadata_diff_id: str) -> None:
    """Raise IntegrityError as :func:`check_named_layers` does; of what an index shows it is not
    known.
    """
    if found.indexed is not None:
        raise IntegrityError(
            f"the image {found.digest} is an index, which does not prove what is in other layers"
        )
    check_named_layers(found.manifest, found.digest, diff_ids, metadata_diff_id)


def check_named_layers(
    manifest: Manifest, digest: str, diff_ids: Sequence[str], metadata_diff_id: str
) -> None:
    """Raise IntegrityError unless the *diff_ids* of an image are those of its layers, the last of
    which has *metadata_diff_id*.
    """
    *blobs, _ = manifest.layers
    proven = [*(blob.digest for blob in blobs), metadata_diff_id]
    for number, (claimed, true) in enumerate(zip_longest(diff_ids, proven, fillvalue="nothing"), 1):
        if claimed != true:
            raise IntegrityError(
                f"the configuration of the image {digest} says that its layer {number} is "
                f"{claimed}, but it is {true}",
                hint="it would be taken for the image that has these layers: convert it again",
            )
