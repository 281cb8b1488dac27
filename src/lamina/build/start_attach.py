"""Attach a start artifact to the image that it was made of, which stays as it is."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lamina.blob.start_seal import require_secret, seal_label, seal_start
from lamina.build.start_build import build_start
from lamina.errors import UsageError
from lamina.oci.bootstrap_root import BootstrapRoot, bootstrap_root
from lamina.oci.manifest import EMPTY, OCI_MANIFEST, Descriptor, describe
from lamina.oci.start_manifest import START_PAGES, StartEntry, start_manifest
from lamina.opening.lazy_index import indexed_image
from lamina.registry.referrers import push_referrer

if TYPE_CHECKING:
    from lamina.blob.seal import HiddenKey
    from lamina.build.start_build import StartReport
    from lamina.build.start_profile import Profile
    from lamina.content.lazy_image import LazyImage
    from lamina.registry.repository import Repository


class Attachment(NamedTuple):
    """What was attached: the digest of its manifest, and what it is attached to."""

    digest: str
    image_digest: str
    report: StartReport


def attach_start(
    repository: Repository, image: LazyImage, profile: Profile, name: str
) -> Attachment:
    """Make the artifact of *profile* and attach it in *repository*, which must be open for writing
    and have the image.

    An image that was opened by an index gets it as the index did: attached to the image itself.

    Raises UsageError for an image without a manifest, and what making and pushing it raises.
    """
    origin = image.origin
    if origin is None or origin.manifest is None or origin.reference is None:
        raise UsageError("an image without a manifest has nothing to attach a start artifact to")
    opened = origin.reference.digest or ""
    manifest = origin.manifest
    secret = require_secret(image.start_secret) if manifest.is_sealed else None
    root = None if secret is not None else bootstrap_root(manifest)
    entry, data, report = make_entry(image, opened, (name, profile), secret, root)
    subject = indexed_image(manifest)
    if subject is None:
        kind = manifest.media_type or OCI_MANIFEST
        subject = Descriptor(media_type=kind, digest=opened, size=len(manifest.raw))
    attached = start_manifest(subject, entry)
    for descriptor, content in ((entry.layer, data), (attached.config, EMPTY)):
        repository.push_blob(descriptor, io.BytesIO(content))
    pushed = push_referrer(repository, attached)
    return Attachment(pushed.digest, subject.digest, report)


def make_entry(
    image: LazyImage,
    digest: str,
    named: tuple[str, Profile],
    secret: HiddenKey | None = None,
    root: BootstrapRoot | None = None,
) -> tuple[StartEntry, bytes, StartReport]:
    """Return the artifact of a profile and its name, sealed if there is a *secret*, and its bytes;
    *digest* is what it is bound to, and *root* that of its bootstrap, if that can be proven.

    Raises what :func:`lamina.build.start_build.build_start` does.
    """
    name, profile = named
    data, report = build_start(image, digest, profile, None if root is None else root.hex)
    entry = StartEntry(name, tuple(profile.command), digest, describe(START_PAGES, data))
    if secret is None:
        return entry, data, report
    binding = bytes.fromhex(digest.partition(":")[2])
    sealed = seal_start(data, secret, binding)
    label = seal_label(entry.open_label, secret, binding)
    entry = entry._replace(layer=describe(START_PAGES, sealed), label=label)
    return entry, sealed, report._replace(artifact_bytes=len(sealed))


def default_name(command: Sequence[str]) -> str:
    """Return a name for the artifact of a command: the name of its program."""
    return command[0].rpartition("/")[2] or "start" if command else "start"
