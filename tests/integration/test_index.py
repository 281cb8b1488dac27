"""Index an image of every kind of layer, open the index, and compare it with the image."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from lamina.archive.stream import LayerStream
from lamina.build.index import IndexOptions, IndexReport, build_index
from lamina.build.source_image import open_source_image
from lamina.content.residency import make_resident
from lamina.errors import IntegrityError, TrustError, UnsupportedError
from lamina.image.compare import compare
from lamina.oci.manifest import (
    NYDUS_MANIFEST_ARTIFACT,
    NYDUS_REF,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    ImageIndex,
    Platform,
    encode,
    parse_image_manifest,
    parse_index,
)
from lamina.oci.reference import parse_reference
from lamina.opening.garbage_collection import collect_garbage
from lamina.opening.lazy_index import IndexRule
from lamina.registry.open_repository import open_repository
from lamina.registry.referrers import fallback_tag, push_referrer
from lamina.registry.repository import Repository
from lamina.store.node import NodeStore
from tests.support.index_layers import COMPRESSIONS, lower_layer, media_type, upper_layer
from tests.support.layers import add_blob, folder, tar_bytes, write_index
from tests.support.lazy_layers import LazyLayer
from tests.support.opening import open_image

EMPTY_INDEX = b'{"schemaVersion":2,"mediaType":"' + OCI_INDEX.encode() + b'","manifests":[]}'


def ordinary_image(
    layout: Path, kind: str | Callable[[bytes], bytes | LazyLayer], tars: Sequence[bytes] = ()
) -> str:
    """Write an ordinary image with layers of a kind, or compressed by a function; return its
    reference.
    """
    pack = COMPRESSIONS[kind] if isinstance(kind, str) else kind
    layers = [pack(tar) for tar in tars or (lower_layer(), upper_layer())]
    lazy = [layer if isinstance(layer, LazyLayer) else LazyLayer(layer, {}) for layer in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [diff_id(layer.data) for layer in lazy]},
    }
    config_type = "application/vnd.oci.image.config.v1+json"
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": add_blob(layout, config_type, json.dumps(config).encode()),
        "layers": [
            {**add_blob(layout, media_type(data), data), "annotations": annotations}
            for data, annotations in lazy
        ],
    }
    data = json.dumps(manifest).encode()
    write_index(layout, "latest", add_blob(layout, str(manifest["mediaType"]), data))
    return f"oci:{layout}:latest"


def diff_id(layer: bytes) -> str:
    """Return the digest of the tar stream in a layer, which eStargz adds a file to."""
    return "sha256:" + hashlib.sha256(LayerStream(io.BytesIO(layer)).read()).hexdigest()


def index(reference: str, **options: int) -> IndexReport:
    """Index an image in its layout, with the tag ``index``."""
    with open_repository(parse_reference(reference), write=True) as repository:
        descriptor, data = repository.manifest()
        manifest = parse_image_manifest(data)
        with repository.open_blob(manifest.config) as stream:
            config = stream.read()
        wanted = IndexOptions(**options)  # type: ignore[arg-type]
        return build_index(repository, descriptor, manifest, config, wanted, tag="index")


def used_index(reference: str, store: Path, rule: IndexRule | None = None) -> str | None:
    """Open an image, and return the digest of the index that served it."""
    with open_image(reference, store=store, index=rule or "auto") as image:
        assert image.origin is not None
        assert image.origin.reference is not None
        return image.origin.reference.digest


@pytest.mark.parametrize("kind", COMPRESSIONS)
@pytest.mark.parametrize("spacing", [1, 256 << 10])
def test_every_kind_of_layer(kind: str, spacing: int, tmp_path: Path) -> None:
    reference = ordinary_image(tmp_path / "layout", kind)
    report = index(reference, spacing_bytes=spacing)
    with (
        open_image(f"oci:{tmp_path / 'layout'}:index", store=tmp_path / "store") as image,
        open_source_image(reference) as wanted,
    ):
        assert [str(one) for one in compare(image, wanted)] == []
        origin = image.origin
        assert origin is not None
        assert origin.manifest is not None
        assert origin.manifest.subject is not None
        assert origin.manifest.subject.digest == report.source_digest
    with open_repository(parse_reference(reference)) as repository:
        _, data = repository.manifest(fallback_tag(report.source_digest))
        assert [entry.digest for entry in parse_index(data).manifests] == [report.digest]


def test_with_a_policy_only_an_index_of_our_own_is_used(tmp_path: Path) -> None:
    reference = ordinary_image(tmp_path / "layout", "gzip -6")
    attached = index(reference, chunk_size=4096)
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    store = tmp_path / "store"
    with pytest.raises(TrustError, match=attached.digest):
        open_image(reference, store=store, policy=policy)
    with open_image(reference, store=store, policy=policy, index="always") as image:
        assert image.bootstrap.chunk_size == 128 << 10
        assert image.open("/d/007").read() == b"seven"
    with open_image(reference, store=store, policy=policy) as image:
        assert image.bootstrap.chunk_size == 128 << 10


def test_a_layer_that_is_there_twice(tmp_path: Path) -> None:
    tars = [lower_layer(), tar_bytes([folder("x")]), upper_layer(), lower_layer()]
    reference = ordinary_image(tmp_path / "layout", "gzip -6", tars)
    assert len(index(reference).table_bytes) == 2
    with (
        open_image(reference, store=tmp_path / "store") as image,
        open_source_image(reference) as wanted,
    ):
        assert [str(one) for one in compare(wanted, image)] == []


def test_the_same_image_gives_the_same_index(tmp_path: Path) -> None:
    reference = ordinary_image(tmp_path / "layout", "gzip -6")
    assert index(reference).digest == index(reference, jobs=1).digest


def test_a_read_fetches_little_of_a_layer(tmp_path: Path) -> None:
    reference = ordinary_image(tmp_path / "layout", "gzip -6")
    index(reference, spacing_bytes=65536)
    with open_image(f"oci:{tmp_path / 'layout'}:index", store=tmp_path / "store") as image:
        with image.open("/d/100") as file:
            assert len(file.read()) == 3700
        assert 0 < image.statistics.fetched_bytes < 250_000
        assert image.statistics.requests == 1


def test_a_read_fetches_no_more_of_a_context_than_it_needs(tmp_path: Path) -> None:
    reference = ordinary_image(tmp_path / "layout", "gzip -6")
    index(reference, spacing_bytes=1 << 20)
    with open_image(reference, store=tmp_path / "store") as image:
        blob = image.blobs[0]
        contexts = blob.table.zran_contexts
        number = blob.table.zran_context_of(0)
        assert contexts[number].in_size > 500_000
        blob.ensure(0, 1)
        assert 0 < image.statistics.fetched_bytes < 200_000


def test_neighbours_are_not_fetched_again(tmp_path: Path) -> None:
    reference = ordinary_image(tmp_path / "layout", "gzip -6", [lower_layer()])
    layer_bytes = index(reference, spacing_bytes=1 << 20).layer_bytes
    with open_image(reference, store=tmp_path / "store") as image:
        blob = image.blobs[0]
        for offset in range(0, blob.size_bytes, 64 << 10):
            blob.ensure(offset, 64 << 10)
        assert blob.complete
        # How many they are depends on how fast they are answered.
        assert image.statistics.requests > 1
        assert image.statistics.fetched_bytes < 1.05 * layer_bytes


def test_an_ordinary_image_is_opened_by_its_index(tmp_path: Path) -> None:
    reference = ordinary_image(tmp_path / "layout", "gzip -6")
    with pytest.raises(UnsupportedError, match="ordinary") as failure:
        open_image(reference, store=tmp_path / "store")
    assert f"lamina index {reference}" in str(failure.value.hint)
    report = index(reference)
    assert used_index(reference, tmp_path / "store") == report.digest
    with pytest.raises(UnsupportedError, match="ordinary"):
        open_image(reference, store=tmp_path / "store", index="never")


def test_the_configuration_is_that_of_the_image(tmp_path: Path) -> None:
    reference = ordinary_image(tmp_path / "layout", "tar")
    index(reference)
    with open_image(reference, store=tmp_path / "store") as image:
        assert len(image.config.rootfs.diff_ids) == 2
        assert image.config.history == ()


def test_a_list_of_platforms_offers_the_index(tmp_path: Path) -> None:
    reference = ordinary_image(tmp_path / "layout", "gzip -6")
    report = index(reference)
    with open_repository(parse_reference(reference), write=True) as repository:
        image = repository.resolve(report.source_digest)
        found = repository.resolve(report.digest)
        platform = Platform(os="linux", architecture="amd64")
        entries = tuple(
            Descriptor(
                media_type=one.media_type,
                digest=one.digest,
                size=one.size,
                platform=platform,
                artifact_type=kind,
            )
            for one, kind in ((image, ""), (found, NYDUS_MANIFEST_ARTIFACT))
        )
        both = ImageIndex(schema_version=2, media_type=OCI_INDEX, manifests=entries)
        repository.push_manifest("latest", OCI_INDEX, encode(both))
        repository.push_manifest(fallback_tag(report.source_digest), OCI_INDEX, EMPTY_INDEX)
    options = {"store": tmp_path / "store", "platform": "linux/amd64"}
    with open_image(reference, **options) as opened:  # type: ignore[arg-type]
        assert opened.origin is not None
        assert opened.origin.reference is not None
        assert opened.origin.reference.digest == report.digest
    with pytest.raises(UnsupportedError, match="ordinary"):
        open_image(reference, index="never", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("is_pinned", [False, True])
def test_an_index_with_blobs_of_its_own_is_refused(tmp_path: Path, *, is_pinned: bool) -> None:
    victim = ordinary_image(tmp_path / "layout", "gzip -6")
    if is_pinned:
        with open_repository(parse_reference(victim)) as repository:
            victim = f"oci:{tmp_path / 'layout'}@{repository.resolve().digest}"
    other = ordinary_image(tmp_path / "other", "gzip -1")
    report = index(other)
    with (
        open_repository(parse_reference(victim), write=True) as repository,
        open_repository(parse_reference(other)) as origin,
    ):
        image = repository.resolve()
        _, data = origin.manifest(report.digest)
        forged = parse_image_manifest(data)
        for layer in (*forged.layers, forged.config):
            with origin.open_blob(layer) as stream:
                repository.push_blob(layer, stream)
        forged = msgspec.structs.replace(forged, subject=image)
        push_referrer(repository, forged)
        with pytest.raises(IntegrityError, match="layers that the image"):
            open_image(victim, store=tmp_path / "store")
        wanted = parse_image_manifest(repository.manifest(image)[1])
        layers = [
            msgspec.structs.replace(layer, annotations={NYDUS_REF: real.digest})
            for layer, real in zip(forged.layers[:-1], wanted.layers, strict=True)
        ]
        push_referrer(
            repository, msgspec.structs.replace(forged, layers=(*layers, forged.layers[-1]))
        )
        with pytest.raises(IntegrityError, match="is no layer of"):
            open_image(victim, store=tmp_path / "store")
        index(victim)
        open_image(victim, store=tmp_path / "store").close()


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"{}")])
def test_an_index_that_is_gone_or_damaged_is_passed_over(
    damage: Callable[[Path], object], tmp_path: Path
) -> None:
    reference = ordinary_image(tmp_path / "layout", "tar")
    first, second = index(reference), index(reference, chunk_size=4096)
    damage(tmp_path / "layout" / "blobs" / second.digest.replace(":", "/"))
    assert used_index(reference, tmp_path / "store") == first.digest


def test_a_policy_is_asked_about_an_attached_index(tmp_path: Path) -> None:
    reference = ordinary_image(tmp_path / "layout", "tar")
    first, second = index(reference), index(reference, chunk_size=4096)
    asked = []

    def only_the_first(repository: Repository, found: Descriptor, image: Descriptor) -> None:
        asked.append(image.digest)
        if found.digest != first.digest:
            raise TrustError(f"nobody signed {found.digest}")

    rule = IndexRule("auto", only_the_first)
    assert used_index(reference, tmp_path / "store", rule) == first.digest
    assert asked == [first.source_digest] * 2
    assert used_index(reference, tmp_path / "store") == second.digest

    def nothing(repository: Repository, found: Descriptor, image: Descriptor) -> None:
        raise TrustError(f"nobody signed {found.digest}")

    with pytest.raises(TrustError, match=second.digest):
        open_image(reference, store=tmp_path / "store", index=IndexRule("auto", nothing))


def test_an_index_of_another_image_is_refused(tmp_path: Path) -> None:
    reference = ordinary_image(tmp_path / "layout", "gzip -6")
    report = index(reference)
    with open_repository(parse_reference(reference), write=True) as repository:
        _, listed = repository.manifest(fallback_tag(report.source_digest))
        _, data = repository.manifest()
        other = data + b" "
        moved = repository.push_manifest("latest", OCI_MANIFEST, other)
        assert moved.digest != report.source_digest
        repository.push_manifest(fallback_tag(moved.digest), OCI_INDEX, listed)
    with pytest.raises(IntegrityError, match="another image"):
        open_image(reference, store=tmp_path / "store")


def test_other_referrers_stay_listed(tmp_path: Path) -> None:
    reference = ordinary_image(tmp_path / "layout", "tar")
    first = index(reference, chunk_size=4096)
    second = index(reference)
    with open_repository(parse_reference(reference)) as repository:
        _, data = repository.manifest(fallback_tag(first.source_digest))
    listed = [entry.digest for entry in parse_index(data).manifests]
    assert listed == [first.digest, second.digest]


def test_a_resident_image_needs_nothing_but_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = ordinary_image(tmp_path / "layout", "gzip -6")
    index(reference)
    store = NodeStore(tmp_path / "store")
    with open_image(reference, store=store) as image:
        make_resident(image, store, reference)
    for blob in (tmp_path / "layout" / "blobs" / "sha256").iterdir():
        blob.unlink()
    monkeypatch.setattr("lamina.store.removal.YOUNG_S", -1)
    collect_garbage(store)
    with open_image(reference, store=store) as image, image.open("/d/007") as file:
        assert file.read() == b"seven"
