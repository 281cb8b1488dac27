"""Pulling an image into containerd without its layers, for clients that do not say which image a
layer is of (``lamina ctr-pull``).

What CRI does, with the same labels: containerd asks the snapshotter for each layer, finds that it
is there, and names the image.  Sources: containerd, ``docs/garbage-collection.md`` (labels that
hold content and snapshots together), ``pkg/unpack``.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from lamina.containerd.claim import IMAGE_LABEL, LAYER_LABEL, LAYERS_LABEL, MANIFEST_LABEL
from lamina.containerd.daemon import Daemon
from lamina.containerd.lazy_image import chain_of
from lamina.containerd.snapshot import MAX_LABEL_BYTES, REF_LABEL
from lamina.containerd.wire import pulling_pb2 as wire
from lamina.errors import FormatError, UnsupportedError, UsageError
from lamina.oci.manifest import OCI_MANIFEST, Manifest, detect_media_type
from lamina.oci.reference import Reference
from lamina.opening.manifest import find_platform
from lamina.opening.open_image import begin
from lamina.opening.place import Place
from lamina.opening.request import OpenRequest
from lamina.registry.resolve import load_config

GC: Final = "containerd.io/gc.ref"
SOURCE: Final = "containerd.io/distribution.source"


class Client(NamedTuple):
    """Which containerd pulls, for whom, and into which of its snapshotters."""

    socket: str
    namespace: str
    snapshotter: str


class Document(NamedTuple):
    """Content that an image needs beside its layers."""

    media_type: str
    digest: str
    data: bytes


class Documents(NamedTuple):
    """What there is of an image beside its layers; ``top`` is what its name means."""

    top: Document
    image: Document
    config: Document
    manifest: Manifest
    chain: tuple[str, ...]


def pull(request: OpenRequest, client: Client) -> str:
    """Pull an image by the reference of a request, and return its digest.

    Raises UnsupportedError for an image that has to be unpacked, TrustError if the policy of the
    request refuses it, and what reading it and asking containerd raise.
    """
    where = request.where
    if not where.is_remote:
        raise UsageError(f"{where} is in no registry, where the snapshotter reads images")
    with begin(request) as opening:
        found = _documents(opening.place, opening.version().reference, request.platform)
    name = str(where).removeprefix("docker://")
    with (
        contextlib.closing(Daemon(client.socket, client.namespace)) as daemon,
        daemon.lease(f"lamina-{secrets.token_hex(8)}"),
    ):
        _take_layers(daemon, client.snapshotter, name, found)
        for document, labels in _labels(found, where, client.snapshotter):
            daemon.put(f"lamina-{document.digest}", document.data, document.digest, labels)
        top = found.top
        target = wire.Descriptor(media_type=top.media_type, digest=top.digest, size=len(top.data))
        daemon.name_image(name, target)
    return found.top.digest


def _documents(place: Place, reference: Reference, platform: str | None) -> Documents:
    digest, data = place.named(reference)
    # As containerd chooses from a list of platforms.
    manifest, image_digest = find_platform(place, reference, platform, prefer="oci")
    config = load_config(manifest, place)
    return Documents(
        Document(detect_media_type(data), digest, data),
        Document(manifest.media_type or OCI_MANIFEST, image_digest, manifest.raw),
        Document(manifest.config.media_type, manifest.config.digest, config.raw),
        manifest,
        chain_of(config.rootfs.diff_ids),
    )


def _take_layers(daemon: Daemon, snapshotter: str, name: str, found: Documents) -> None:
    """Have all layers of an image there, from the bottom."""
    layers = found.manifest.layers
    if not layers:
        raise FormatError(f"{name} has no layers")
    if len(layers) != len(found.chain):
        raise FormatError(f"{name} has {len(layers)} layers, and {len(found.chain)} are configured")
    parent = ""
    for number, chain in enumerate(found.chain):
        if not daemon.has_snapshot(snapshotter, chain):
            labels = {
                REF_LABEL: chain,
                IMAGE_LABEL: name,
                MANIFEST_LABEL: found.image.digest,
                LAYER_LABEL: layers[number].digest,
                LAYERS_LABEL: _layers_label([each.digest for each in layers[number:]]),
            }
            key = f"extract-{time.time_ns()}-{secrets.token_hex(2)} {chain}"
            if not daemon.offer_layer(snapshotter, key, parent, labels):
                raise UnsupportedError(
                    f"{name} has to be unpacked, which ctr-pull does not do",
                    hint=f"ctr images pull --snapshotter {snapshotter} {name}; to start it lazily, "
                    "index it before (lamina index), and let the snapshotter believe that "
                    "(--index-from)",
                )
        parent = chain


def _layers_label(digests: list[str]) -> str:
    """Return digests with commas between them, as many as a label has room for."""
    room = MAX_LABEL_BYTES - len(LAYERS_LABEL)
    text = ""
    for digest in digests:
        longer = f"{text},{digest}" if text else digest
        if len(longer) > room:
            break
        text = longer
    return text


def _labels(
    found: Documents, where: Reference, snapshotter: str
) -> Iterator[tuple[Document, dict[str, str]]]:
    """Yield each document with the labels that hold together what belongs to an image, what is
    held first.
    """
    source = {f"{SOURCE}.{where.registry}": where.repository}
    yield found.config, {**source, f"{GC}.snapshot.{snapshotter}": found.chain[-1]}
    layers = {f"{GC}.content.l.{n}": each.digest for n, each in enumerate(found.manifest.layers)}
    yield found.image, {**source, f"{GC}.content.config": found.config.digest, **layers}
    if found.top.digest != found.image.digest:
        yield found.top, {**source, f"{GC}.content.m.0": found.image.digest}
