"""Copies between all kinds of places: byte-identical, whole or not at all."""

from __future__ import annotations

import io
import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.errors import FetchError, FormatError, IntegrityError, NotFoundError
from lamina.http.client_options import ClientOptions
from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.registry.copy import copy, plan_copy, run_copy
from lamina.registry.cosign_tags import push_list
from lamina.registry.open_repository import open_repository
from lamina.registry.referrers import fallback_tag, push_referrer
from lamina.registry.repository import Repository
from tests.support import fake_registry as fake
from tests.support.fake_registry import FakeRegistry
from tests.unit.registry.images import make_image, make_index


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with fake.fake_registry() as registry:
        yield registry


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    make_image(tmp_path / "l", "one")
    make_index(tmp_path / "l", "multi")
    return tmp_path / "l"


def opened(text: str, *, write: bool = False) -> Repository:
    return open_repository(parse_reference(text), write=write)


def content(repository: Repository) -> dict[str, bytes]:
    """Every manifest and blob of what a reference names."""
    plan = plan_copy(repository)
    found = {descriptor.digest: data for descriptor, data in plan.manifests}
    for blob in plan.blobs:
        with repository.open_blob(blob) as stream:
            found[blob.digest] = stream.read()
    return found


@pytest.mark.parametrize("tag", ["one", "multi"])
def test_there_and_back(registry: FakeRegistry, layout: Path, tmp_path: Path, tag: str) -> None:
    places = [
        f"oci:{layout}:{tag}",
        f"docker://{registry.host}/a/b:v1",
        f"docker://{registry.host}/c:v2",
        f"oci-archive:{tmp_path}/a.tar:v3",
        f"oci:{tmp_path}/copy:v4",
    ]
    for one, other in itertools.pairwise(places):
        with opened(one) as source, opened(other, write=True) as destination:
            copy(source, destination)
    with opened(places[0]) as first, opened(places[-1]) as last:
        assert content(first) == content(last)
    assert registry.count("PATCH") == 0
    mounts = [seen for seen in registry.seen if "mount=" in seen.path]
    assert len(mounts) == (3 if tag == "one" else 6)


def test_progress_counts_every_byte_once(registry: FakeRegistry, layout: Path) -> None:
    moved: dict[str, int] = {}
    lock = threading.Lock()

    def progress(blob: m.Descriptor, size_bytes: int) -> None:
        with lock:
            moved[blob.digest] = moved.get(blob.digest, 0) + size_bytes

    with opened(f"oci:{layout}:multi") as source:
        plan = plan_copy(source)
        for _ in range(2):
            moved.clear()
            with opened(f"docker://{registry.host}/a:v1", write=True) as destination:
                run_copy(plan, source, destination, progress=progress)
            assert moved == {blob.digest: blob.size for blob in plan.blobs}
    assert plan.size_bytes == sum(moved.values())


def test_one_platform(registry: FakeRegistry, layout: Path) -> None:
    with opened(f"oci:{layout}:multi") as source:
        index = m.parse_index(source.manifest()[1])
        with opened(f"docker://{registry.host}/a:v1", write=True) as destination:
            done = copy(source, destination, platforms=["linux/arm64"])
            assert done.digest == index.manifests[1].digest
        with opened(f"docker://{registry.host}/a:v2", write=True) as destination:
            done = copy(source, destination, platforms=["linux/arm64", "linux/amd64"])
            kept = m.parse_index(registry.manifests["v2"][1])
            assert kept.manifests == index.manifests
            assert done.is_index
        with pytest.raises(NotFoundError, match="linux/s390x") as caught:
            plan_copy(source, platforms=["linux/s390x"])
    assert caught.value.hint == "it has these platforms: linux/amd64, linux/arm64"


def test_the_platform_of_a_single_image_is_checked(layout: Path) -> None:
    with opened(f"oci:{layout}:one") as source:
        wanted = ["linux/arm64", "linux/amd64"]
        assert plan_copy(source, platforms=wanted) == plan_copy(source)
        with pytest.raises(NotFoundError, match="no manifest for linux/arm64") as caught:
            plan_copy(source, platforms=["linux/arm64"])
        assert caught.value.hint == "it is a single image for linux/amd64"


def test_an_artifact_is_for_every_platform(layout: Path) -> None:
    with opened(f"oci:{layout}:thing", write=True) as place:
        config = m.describe("application/vnd.example.thing", b"not JSON")
        place.push_blob(config, io.BytesIO(b"not JSON"))
        thing = m.Manifest(schema_version=2, media_type=m.OCI_MANIFEST, config=config)
        place.push_manifest("thing", m.OCI_MANIFEST, m.encode(thing))
        assert plan_copy(place, platforms=["linux/arm64"]) == plan_copy(place)


def test_a_failed_copy_sets_no_tag(registry: FakeRegistry, layout: Path) -> None:
    registry.rule("PUT", "uploads", fake.status(403), times=1)
    with (
        opened(f"oci:{layout}:multi") as source,
        opened(f"docker://{registry.host}/a:v1", write=True) as destination,
        pytest.raises(FetchError),
    ):
        copy(source, destination)
    assert not registry.manifests


def test_a_damaged_blob_is_not_copied(registry: FakeRegistry, layout: Path) -> None:
    with opened(f"oci:{layout}:one") as source:
        layer = m.parse_image_manifest(source.manifest()[1]).layers[0]
        path = layout / "blobs" / "sha256" / layer.hex
        path.write_bytes(path.read_bytes()[:-1] + b"!")
        with (
            opened(f"docker://{registry.host}/a:v1", write=True) as destination,
            pytest.raises(IntegrityError),
        ):
            copy(source, destination)
    assert layer.digest not in registry.blobs
    assert not registry.manifests


def test_layers_with_urls_stay_where_they_are(registry: FakeRegistry, layout: Path) -> None:
    with opened(f"oci:{layout}:one", write=True) as source:
        document = json.loads(source.manifest()[1])
        document["layers"][0]["urls"] = ["https://example/x"]
        source.push_manifest("foreign", m.OCI_MANIFEST, json.dumps(document).encode())
    with opened(f"oci:{layout}:foreign") as source:
        assert len(plan_copy(source).blobs) == 2


def test_any_artifact(registry: FakeRegistry, tmp_path: Path) -> None:
    data = b"anything"
    empty = m.describe(m.OCI_EMPTY, b"{}")
    layer = m.describe("application/x-thing", data)
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": m.OCI_MANIFEST,
            "artifactType": "application/x-artifact",
            "config": {"mediaType": empty.media_type, "digest": empty.digest, "size": 2},
            "layers": [{"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}],
            "unknown field": {"kept": True},
        },
        indent=3,
    ).encode()
    with opened(f"oci:{tmp_path}/l:x", write=True) as source:
        source.push_blob(empty, io.BytesIO(b"{}"))
        source.push_blob(layer, io.BytesIO(data))
        source.push_manifest("x", m.OCI_MANIFEST, manifest)
        with opened(f"docker://{registry.host}/a:v1", write=True) as destination:
            copy(source, destination)
    assert registry.manifests["v1"] == (m.OCI_MANIFEST, manifest)
    assert registry.blobs[layer.digest] == data


def test_indexes_without_end(tmp_path: Path) -> None:
    with opened(f"oci:{tmp_path}/l:x", write=True) as repository:
        inner: tuple[m.Descriptor, ...] = ()
        for _ in range(8):
            index = m.ImageIndex(schema_version=2, media_type=m.OCI_INDEX, manifests=inner)
            inner = (repository.push_manifest("x", m.OCI_INDEX, m.encode(index)),)
        with pytest.raises(FormatError, match="without end"):
            plan_copy(repository)


def test_manifests_are_kept_within_bounds(layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(f"oci:{layout}:one", write=True) as source:
        image = source.resolve()
        empty = m.describe(m.OCI_EMPTY, b"{}")
        source.push_blob(empty, io.BytesIO(b"{}"))
        for number in range(3):
            notes = {"padding": "x" * 3000, "number": str(number)}
            note = m.Manifest(
                schema_version=2,
                media_type=m.OCI_MANIFEST,
                artifact_type="application/vnd.example.note",
                config=empty,
                subject=image,
                annotations=notes,
            )
            push_referrer(source, note)
        assert len(plan_copy(source, referrers=True).attached) == 3
        monkeypatch.setattr("lamina.registry.copy._MAX_MANIFEST_BYTES", 9000, raising=False)
        assert plan_copy(source).attached == ()
        with pytest.raises(FormatError, match="more than 9000 bytes"):
            plan_copy(source, referrers=True)


def test_the_parts_of_an_attached_index_come_along(layout: Path, tmp_path: Path) -> None:
    with (
        opened(f"oci:{layout}:one", write=True) as source,
        opened(f"oci:{tmp_path}/there:one", write=True) as destination,
    ):
        empty = m.describe(m.OCI_EMPTY, b"{}")
        source.push_blob(empty, io.BytesIO(b"{}"))
        part = m.Manifest(
            schema_version=2,
            media_type=m.OCI_MANIFEST,
            artifact_type="application/vnd.example.part",
            config=empty,
        )
        listed = m.ImageIndex(
            schema_version=2,
            media_type=m.OCI_INDEX,
            artifact_type="application/vnd.example.list",
            manifests=(source.push_manifest(None, m.OCI_MANIFEST, m.encode(part)),),
            subject=source.resolve(),
        )
        push_referrer(source, m.parse_manifest(m.encode(listed)))
        plan = plan_copy(source, referrers=True)
        root = run_copy(plan, source, destination)
        assert destination.resolve("one").digest == root.digest == source.resolve().digest
        assert destination.manifest(listed.manifests[0]) == source.manifest(listed.manifests[0])
        assert destination.has_blob(empty.digest, empty.size)


def sign(repository: Repository, suffix: str, *entries: str) -> None:
    """Have these entries under a tag as cosign has them; text in the place of signatures."""
    layers = []
    for text in entries:
        layer = m.describe(
            f"application/vnd.example{suffix}", text.encode(), {"signature": f"by {text}"}
        )
        repository.push_blob(layer, io.BytesIO(text.encode()))
        layers.append(layer)
    push_list(repository, fallback_tag(repository.resolve().digest) + suffix, tuple(layers))


def signed(repository: Repository, suffix: str) -> list[str]:
    tag = fallback_tag(repository.resolve().digest) + suffix
    manifest = m.parse_image_manifest(repository.manifest(tag)[1])
    with repository.open_blob(manifest.config) as stream:
        config = m.parse_config(stream.read())
    assert config.rootfs.diff_ids == tuple(layer.digest for layer in manifest.layers)
    found = []
    for layer in manifest.layers:
        with repository.open_blob(layer) as stream:
            found.append(stream.read().decode())
        assert layer.annotations == {"signature": f"by {found[-1]}"}
    return found


@pytest.mark.parametrize("kind", ["registry", "layout"])
@pytest.mark.parametrize(
    "theirs, after",
    [
        ((), ["a", "b"]),
        (("c",), ["c", "a", "b"]),
        (("b", "c"), ["b", "c", "a"]),
        (("b", "a", "c"), ["b", "a", "c"]),
        (("b",), ["a", "b"]),
    ],
)
def test_signatures_of_the_destination_stay(
    layout: Path, registry: FakeRegistry, tmp_path: Path, kind: str, theirs: tuple[str, ...],
    after: list[str],
) -> None:  # fmt: skip
    places = {"registry": f"docker://{registry.host}/a:v", "layout": f"oci:{tmp_path}/there:v"}
    with (
        opened(f"oci:{layout}:one", write=True) as source,
        opened(places[kind], write=True) as there,
    ):
        for suffix in (".sig", ".att", ".sbom"):
            sign(source, suffix, "a", "b")
        copy(source, there)
        if theirs:
            for suffix in (".sig", ".att", ".sbom"):
                sign(there, suffix, *theirs)
        for _ in range(2):
            run_copy(plan_copy(source, referrers=True), source, there)
            assert signed(there, ".sig") == signed(there, ".att") == after
            assert signed(there, ".sbom") == ["a", "b"]


def test_what_is_no_list_of_signatures_is_replaced(layout: Path, registry: FakeRegistry) -> None:
    with (
        opened(f"oci:{layout}:one", write=True) as source,
        opened(f"docker://{registry.host}/a:v", write=True) as there,
    ):
        sign(source, ".sig", "a")
        tag = f"{fallback_tag(source.resolve().digest)}.sig"
        registry.manifests[tag] = (m.OCI_MANIFEST, b"<html>")
        run_copy(plan_copy(source, referrers=True), source, there)
        assert signed(there, ".sig") == ["a"]


def test_signatures_that_cannot_be_read_now_are_not_lost(
    layout: Path, registry: FakeRegistry
) -> None:
    with opened(f"oci:{layout}:one", write=True) as source:
        sign(source, ".sig", "a")
        registry.rule("GET", ".sig", lambda exchange: exchange.answer(503, b"{}"), times=9)
        plan = plan_copy(source, referrers=True)
        reference = parse_reference(f"docker://{registry.host}/a:v")
        once = ClientOptions(attempts=1)
        with (
            open_repository(reference, write=True, options=once) as there,
            pytest.raises(FetchError, match="503"),
        ):
            run_copy(plan, source, there)
        assert not any(name.endswith(".sig") or name == "v" for name in registry.manifests)
