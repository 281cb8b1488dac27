"""The manifest of a start artifact: one layer, attached to an image by ``subject``.

What a reader needs to find the layer is in annotations, which registries copy into the list of what
refers to an image, so that the manifest itself need not be asked for.  Nothing of it is trusted:
the pages are proven (:mod:`lamina.blob.start_artifact`).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from lamina.oci.attachment import attached_manifest, layer_note, noted_layer
from lamina.oci.manifest import NYDUS_BLOB, NYDUS_BLOB_MARK, Descriptor, Manifest

START_ARTIFACT: Final = "application/vnd.lamina.start.v1"
START_PAGES: Final = "application/vnd.lamina.start.pages.v1"

START_NAME: Final = "dev.lamina.start.name"
"""What ``--profile`` says."""
START_COMMAND: Final = "dev.lamina.start.command"
"""The command that was recorded, as JSON list."""
START_IMAGE: Final = "dev.lamina.start.image"
"""Digest of the manifest whose pages these are: the image, or the index that opens it."""
START_LAYER: Final = "dev.lamina.start.layer"
"""``DIGEST SIZE`` of the only layer."""
START_LABEL: Final = "dev.lamina.start.label"
"""Name and command for a sealed image (:func:`lamina.blob.start_seal.seal_label`)."""

START_USE: Final = "dev.lamina.start.use"
"""Of the manifest of an image: the name of the artifact that its containers start with, where
nobody is there to say ``--profile``.
"""

MAX_START_BYTES: Final = 64 << 20


class StartRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which artifact is wanted: that of the name, or else of the command, which is empty for that
    of the image.
    """

    name: str | None = None
    command: tuple[str, ...] = ()


class StartEntry(NamedTuple):
    """A start artifact as it is listed with an image, or one that is a layer of it.

    ``image_digest`` is that of the manifest whose pages it has, of a layer that of the metadata
    layer.  With a sealed ``label``, name and command are empty.
    """

    name: str
    command: tuple[str, ...]
    image_digest: str
    layer: Descriptor
    label: str = ""

    @property
    def shown_command(self) -> str:
        """The command for people."""
        return shlex.join(self.command)

    @property
    def open_label(self) -> bytes:
        """Name and command, to be sealed."""
        return msgspec.json.encode((self.name, self.command))

    def with_label(self, label: bytes) -> StartEntry | None:
        """Return the entry with what :attr:`open_label` was; None if that is malformed."""
        try:
            name, command = msgspec.json.decode(label, type=tuple[str, tuple[str, ...]])
        except msgspec.MsgspecError:
            return None
        return self._replace(name=name, command=command, label="")

    @property
    def notes(self) -> dict[str, str]:
        """The annotations that tell of name and command."""
        if self.label:
            return {START_LABEL: self.label}
        command = msgspec.json.encode(list(self.command)).decode()
        return {START_NAME: self.name, START_COMMAND: command}


def start_manifest(subject: Descriptor, entry: StartEntry) -> Manifest:
    """Return the manifest that attaches an artifact to *subject*."""
    notes = {
        **entry.notes,
        START_IMAGE: entry.image_digest,
        START_LAYER: layer_note(entry.layer),
    }
    return attached_manifest(subject, START_ARTIFACT, entry.layer, notes)


def start_entries(listed: Iterable[Descriptor], image_digest: str) -> list[StartEntry]:
    """Return the artifacts for a manifest among what is listed, the one attached last first.

    What is no artifact, of another manifest, or too large to be one, is left out.
    """
    found = [_entry(each) for each in listed if each.artifact_type == START_ARTIFACT]
    return [each for each in found[::-1] if each is not None and each.image_digest == image_digest]


def own_layer(entry: StartEntry) -> Descriptor:
    """Return the descriptor of an artifact that is a layer of the image, before the last one.

    In a native image it is marked as a data blob, which readers that do not know it leave alone.
    """
    annotations = dict(entry.notes)
    kind = START_PAGES
    if not entry.label:
        kind = NYDUS_BLOB
        annotations[NYDUS_BLOB_MARK] = "true"
    return msgspec.structs.replace(entry.layer, media_type=kind, annotations=annotations)


def is_own_start(layer: Descriptor) -> bool:
    """Tell whether a layer of an image is a start artifact."""
    return START_LABEL in layer.annotations or START_NAME in layer.annotations


def own_starts(manifest: Manifest) -> list[StartEntry]:
    """Return the artifacts that are layers of an image."""
    found = []
    for layer in manifest.layers[:-1]:
        if is_own_start(layer) and layer.size <= MAX_START_BYTES:
            entry = _labelled(layer.annotations, manifest.layers[-1].digest, layer)
            if entry is not None:
                found.append(entry)
    return found


def exact_start(entries: Sequence[StartEntry], rule: StartRule) -> StartEntry | None:
    """Return the artifact that is named, or else that of exactly the command, if it is there."""
    for entry in entries:
        if entry.name == rule.name if rule.name is not None else entry.command == rule.command:
            return entry
    return None


def choose_start(entries: Sequence[StartEntry], rule: StartRule) -> StartEntry | None:
    """Return the artifact of that name; without one, that of the command, else of its program, else
    the one that was attached last.
    """
    if rule.name is not None:
        return next((entry for entry in entries if entry.name == rule.name), None)
    wanted = rule.command
    for fits in (
        lambda entry: entry.command == wanted,
        lambda entry: bool(wanted) and entry.command[:1] == wanted[:1],
    ):
        found = next(filter(fits, entries), None)
        if found is not None:
            return found
    return entries[0] if entries else None


def _entry(listed: Descriptor) -> StartEntry | None:
    notes = listed.annotations
    layer = noted_layer(notes.get(START_LAYER, ""), START_PAGES, MAX_START_BYTES)
    return None if layer is None else _labelled(notes, notes.get(START_IMAGE, ""), layer)


def _labelled(notes: Mapping[str, str], image: str, layer: Descriptor) -> StartEntry | None:
    if START_LABEL in notes:
        return StartEntry("", (), image, layer, notes[START_LABEL])
    try:
        command = msgspec.json.decode(notes.get(START_COMMAND, "[]"), type=tuple[str, ...])
    except msgspec.MsgspecError:
        return None
    return StartEntry(notes.get(START_NAME, ""), command, image, layer)
