"""Blobs that are decrypted while they are read are proven at their end."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from tests.unit.registry.images import noise
from tests.unit.trust.keys_in_code import make_key

from lamina.errors import FormatError, IntegrityError, TrustError, UnsupportedError
from lamina.image.errors import NoKeyError
from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.registry.layout import LayoutRepository
from lamina.registry.repository import Repository
from lamina.registry.repository_source import RepositorySource
from lamina.source.folder_source import FolderSource
from lamina.trust.encryption.decrypted_repository import decrypted, decrypted_sources
from lamina.trust.encryption.image_encryption import encrypt_layer
from lamina.trust.encryption.recipients import DecryptionKeys, Recipients

READER = make_key("P-256")
KEYS = DecryptionKeys((READER,))
RECIPIENTS = Recipients((READER.public(),))
PLAIN = noise(300_000)
DIFF_ID = "sha256:" + hashlib.sha256(PLAIN).hexdigest()


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[LayoutRepository]:
    with LayoutRepository(parse_reference(f"oci:{tmp_path}/layout"), write=True) as repository:
        yield repository


def push(layout: LayoutRepository, data: bytes, layer: m.Descriptor) -> m.Descriptor:
    named = m.describe(layer.media_type, data, dict(layer.annotations))
    layout.push_blob(named, io.BytesIO(data))
    return named


def sealed_layer(layout: LayoutRepository, plain: bytes = PLAIN) -> tuple[m.Descriptor, bytes]:
    sealed = io.BytesIO()
    layer = encrypt_layer(m.describe(m.OCI_LAYER, plain), io.BytesIO(plain), sealed, RECIPIENTS)
    return push(layout, sealed.getvalue(), layer), sealed.getvalue()


def manifest_of(*layers: m.Descriptor) -> m.Manifest:
    config = m.Descriptor(media_type=m.OCI_CONFIG, digest=DIFF_ID, size=1)
    return m.Manifest(schema_version=2, media_type=m.OCI_MANIFEST, config=config, layers=layers)


def view(
    layout: LayoutRepository, *layers: m.Descriptor, keys: DecryptionKeys | None = KEYS
) -> tuple[Repository, tuple[m.Descriptor, ...]]:
    with ExitStack() as stack:
        found = decrypted(layout, manifest_of(*layers), [DIFF_ID] * len(layers), keys, stack)
        stack.pop_all()
    return found


def read(repository: Repository, layer: m.Descriptor) -> bytes:
    with repository.open_blob(layer) as stream:
        return b"".join(iter(lambda: stream.read(70_001), b""))


def test_streams_and_ranges_are_in_clear(layout: LayoutRepository) -> None:
    clear = push(layout, b"in clear", m.describe(m.OCI_LAYER, b"in clear"))
    layer, _ = sealed_layer(layout)
    repository, (first, second) = view(layout, clear, layer)
    assert first == clear
    assert second.media_type == m.OCI_LAYER
    assert (second.digest, second.size) == (layer.digest, len(PLAIN))
    assert not second.annotations
    assert read(repository, first) == b"in clear"
    assert read(repository, second) == PLAIN
    chance = random.Random(3)
    for _ in range(50):
        offset = chance.randrange(len(PLAIN))
        size = chance.randrange(1, 100)
        part = PLAIN[offset : offset + size]
        assert repository.read_range(layer.digest, offset, len(part)) == part
    assert repository.read_range(clear.digest, 3, 5) == b"clear"


def test_sources_are_in_clear_too(layout: LayoutRepository) -> None:
    clear = push(layout, b"in clear", m.describe(m.OCI_LAYER, b"in clear"))
    layer, _ = sealed_layer(layout)
    folder, repository = FolderSource(layout.reference.path), RepositorySource(layout)
    with ExitStack() as stack:
        image = layout.reference, manifest_of(clear, layer)
        found = decrypted_sources([folder, repository], image, [DIFF_ID] * 2, KEYS, stack)
        for source, inner in zip(found, (folder, repository), strict=True):
            assert (source.name, source.cost) == (inner.name, inner.cost)
            assert source.can_stream == inner.can_stream
            for blob, plain in ((clear, b"in clear"), (layer, PLAIN)):
                buffer = bytearray(5)
                source.read_into(blob.hex, 3, memoryview(buffer), 1.0)
                assert buffer == plain[3:8]
        with found[1].open_sequential(layer.hex, layer.size) as stream:
            assert b"".join(iter(lambda: stream.read(70_001), b"")) == PLAIN
        with pytest.raises(NoKeyError, match="is encrypted"):
            decrypted_sources([folder], image, [DIFF_ID] * 2, None, stack)
        image = layout.reference, manifest_of(clear)
        assert decrypted_sources([folder], image, [DIFF_ID], None, stack) == [folder]


def test_nothing_encrypted_is_nothing_to_do(layout: LayoutRepository) -> None:
    clear = push(layout, b"in clear", m.describe(m.OCI_LAYER, b"in clear"))
    assert view(layout, clear, keys=None) == (layout, (clear,))


def test_what_was_changed_is_found_at_the_end(layout: LayoutRepository) -> None:
    layer, sealed = sealed_layer(layout)
    changed = push(layout, sealed[:1000] + bytes([sealed[1000] ^ 1]) + sealed[1001:], layer)
    repository, (found,) = view(layout, changed)
    with pytest.raises(IntegrityError, match="HMAC"):
        read(repository, found)


def test_a_key_of_another_layer_is_found(layout: LayoutRepository) -> None:
    layer, _ = sealed_layer(layout, b"another layer")
    repository, (found,) = view(layout, layer)
    # Its plaintext has the digest that was wrapped, so it is the diff_id that tells: who
    # decompresses it checks that.  A wrapped digest of something else is found here.
    assert read(repository, found) == b"another layer"
    sealed = io.BytesIO()
    other = encrypt_layer(m.describe(m.OCI_LAYER, b"x"), io.BytesIO(PLAIN[:9]), sealed, RECIPIENTS)
    repository, (found,) = view(layout, push(layout, sealed.getvalue(), other))
    with pytest.raises(IntegrityError, match="of another plaintext"):
        read(repository, found)


def test_without_the_key_there_is_nothing(layout: LayoutRepository) -> None:
    layer, _ = sealed_layer(layout)
    for keys in (None, DecryptionKeys()):
        with pytest.raises(NoKeyError, match="is encrypted"):
            view(layout, layer, keys=keys)
    with pytest.raises(TrustError, match="no key"):
        view(layout, layer, keys=DecryptionKeys((make_key("P-384"),)))


def test_what_is_no_layer_is_refused(layout: LayoutRepository) -> None:
    layer, _ = sealed_layer(layout)
    with pytest.raises(UnsupportedError):
        view(layout, msgspec.structs.replace(layer, media_type="application/wasm+encrypted"))
    with pytest.raises(FormatError):
        view(layout, msgspec.structs.replace(layer, annotations={}))
