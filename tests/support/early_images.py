"""Native images in a folder whose start artifact has pages of the bootstrap, good and hostile."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from lamina.archive.blocks import BLOCK_BYTES, BlockReader
from lamina.archive.stream import open_layer
from lamina.archive.tar import walk
from lamina.blob.page_proof import PAGE_BYTES, make_siblings
from lamina.blob.start_artifact import FrameContent, PageRange, encode
from lamina.build.convert import convert
from lamina.build.options import ConvertOptions
from lamina.build.package import bootstrap_layer
from lamina.build.start_attach import attach_start
from lamina.build.start_profile import Profile, spans_of
from lamina.codec.digest import Digester, digest
from lamina.content.lazy_image import LazyImage
from lamina.oci.manifest import EMPTY, OCI_MANIFEST, describe, parse_image_manifest
from lamina.oci.manifest import encode as encode_document
from lamina.oci.reference import parse_reference
from lamina.oci.start_manifest import START_PAGES, StartEntry, StartRule, start_manifest
from lamina.opening.open_image import open_image
from lamina.opening.request import request_of
from lamina.registry.open_repository import open_repository
from lamina.registry.referrers import push_referrer
from tests.support.sealed import make_source

COMMAND = ("/bin/program",)


class EarlyImageFolder(NamedTuple):
    """An image in an OCI folder: its reference, and its bootstrap."""

    reference: str
    bootstrap: bytes

    @property
    def folder(self) -> Path:
        return Path(self.reference.split(":")[1])

    def copied(self, folder: Path) -> EarlyImageFolder:
        """Return a copy, to attach something else to."""
        shutil.copytree(self.folder, folder)
        tag = self.reference.rsplit(":", 1)[1]
        return self._replace(reference=f"oci:{folder}:{tag}")

    def open(self, store: Path, *, early: bool = True, start: bool = True) -> LazyImage:
        request = request_of(self.reference, store=store)
        rule = StartRule(command=COMMAND) if start else None
        return open_image(msgspec.structs.replace(request, start=rule), early=early)

    def metadata_layer(self) -> Path:
        with open_repository(parse_reference(self.reference)) as repository:
            layer = parse_image_manifest(repository.manifest()[1]).layers[-1]
        return self.folder / "blobs" / layer.digest.replace(":", "/")

    def attach_profile(self, profile: Profile, store: Path) -> None:
        """Attach the right artifact."""
        with (
            self.open(store, start=False) as image,
            open_repository(parse_reference(self.reference), write=True) as repository,
        ):
            attach_start(repository, image, profile, "program")

    def attach_pages(
        self,
        pages: Iterable[int],
        change: Callable[[FrameContent], FrameContent] = lambda frame: frame,
        root: bytes | None = None,
    ) -> None:
        """Attach an artifact with pages of the bootstrap and of nothing else."""
        numbers = sorted(pages)
        view = memoryview(self.bootstrap)
        frame = FrameContent(
            make_siblings([(view, numbers)])[0],
            b"".join(view[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] for page in numbers),
            tuple(PageRange(0, first, stop - first) for first, stop in spans_of(numbers)),
            (),
        )
        root = root or digest(Digester.BLAKE3, self.bootstrap)
        with open_repository(parse_reference(self.reference), write=True) as repository:
            image = repository.resolve()
            named = bytes.fromhex(image.digest.partition(":")[2])
            data = encode(named, [root.hex()], [], [change(frame)])
            entry = StartEntry("program", COMMAND, image.digest, describe(START_PAGES, data))
            manifest = start_manifest(image, entry)
            repository.push_blob(entry.layer, io.BytesIO(data))
            repository.push_blob(manifest.config, io.BytesIO(EMPTY))
            push_referrer(repository, manifest)


def make_early_image(
    folder: Path,
    files: dict[str, bytes],
    mutate: Callable[[bytearray], None] | None = None,
    *,
    claimed: bytes | None = None,
) -> EarlyImageFolder:
    """Convert an image of *files*, and change its bootstrap after that; the manifest and all
    digests fit, as they do for whoever makes an image.  *claimed* is what the manifest says to be
    the root.
    """
    source = make_source(folder / "source", (files,))
    reference = f"oci:{folder / 'image'}:app"
    convert(parse_reference(source), parse_reference(reference), ConvertOptions(jobs=1))
    with open_repository(parse_reference(reference), write=True) as repository:
        manifest = parse_image_manifest(repository.manifest()[1])
        layer = manifest.layers[-1]
        with repository.open_blob(layer) as stream:
            parts = _files(stream.read(), layer.media_type)
        bootstrap = bytearray(parts.pop(b"image/image.boot"))
        if mutate is None and claimed is None:
            return EarlyImageFolder(reference, bytes(bootstrap))
        if mutate is not None:
            mutate(bootstrap)
        metas = [(name[6:70].decode(), data) for name, data in parts.items()]
        last = bootstrap_layer(bootstrap, metas)
        described = last.descriptor
        if claimed is not None:
            text = f"{claimed.hex()} {len(bootstrap)}"
            notes = {**described.annotations, "dev.lamina.bootstrap.root": text}
            described = msgspec.structs.replace(described, annotations=notes)
        repository.push_blob(described, io.BytesIO(last.data))
        layers: Sequence[object] = (*manifest.layers[:-1], described)
        changed = encode_document(msgspec.structs.replace(manifest, layers=layers))
        repository.push_manifest("app", OCI_MANIFEST, changed)
    return EarlyImageFolder(reference, bytes(bootstrap))


def _files(data: bytes, media_type: str) -> dict[bytes, bytes]:
    stream = open_layer(io.BytesIO(data), media_type, 1 << 30)
    reader = BlockReader(lambda: stream.read(BLOCK_BYTES))
    return {entry.path: b"".join(reader.pieces(entry.size)) for entry in walk(reader) if entry.size}
