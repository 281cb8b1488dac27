"""Records: what 76f8115 wrote is read, what a later version wrote is never taken for less."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.records import framed

from lamina.errors import StoreError
from lamina.store.names import name_digest
from lamina.store.node import NodeStore
from lamina.store.records import (
    IMAGE,
    INDEX,
    KINDS,
    LAYERS,
    LINK,
    NAME,
    RELEASES,
    RESIDENT,
    SIGNATURES,
    IndexRecord,
    KeptSignature,
    Kind,
    LayersRecord,
    LinkRecord,
    MetadataFiles,
    NameRecord,
    RecordError,
    ReleasesRecord,
    ResidentRecord,
    SignaturesRecord,
    decode_record,
    encode_record,
)

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64

# As 76f8115 wrote them, byte by byte.
BEFORE: list[tuple[Kind, bytes, object]] = [  # type: ignore[type-arg]
    (
        IMAGE,
        b"""{"attached": [], "bootstrap": "sha256:11", "check": 3, "chunk_sets": {"b1": "cc"},
        "tables": {"b1": "sha256:22"}, "version": 1}""",
        MetadataFiles("sha256:11", {"b1": "sha256:22"}, {"b1": "cc"}, check=3),
    ),
    (
        SIGNATURES,
        b'[[["eyJ9","c2ln"]],["YnVuZGxl"]]',
        SignaturesRecord((KeptSignature(b'{"}', b"sig"),), (b"bundle",)),
    ),
    (INDEX, TWO.encode(), IndexRecord(TWO)),
    (INDEX, b'{"digest":"%s","by_table":true}' % TWO.encode(), IndexRecord(TWO, by_table=True)),
    (
        LAYERS,
        f'{{"trees": {{"{ONE}": "{TWO}"}}, "check": 3}}'.encode(),
        LayersRecord({ONE: TWO}, check=3),
    ),
    (LINK, b'{"round_trip_s": 0.05, "bytes_per_s": 3000000.0}', LinkRecord(0.05, 3e6)),
    (
        RELEASES,
        b'{"name":"docker://registry.example/app","releases":{"stable":7}}',
        ReleasesRecord("docker://registry.example/app", {"stable": 7}),
    ),
    (
        NAME,
        b'{"name":"docker://h/x:1","digest":"%s","opened":{"":"sha256:33"}}' % ONE.encode(),
        NameRecord("docker://h/x:1", ONE, {"": "sha256:33"}),
    ),
    (
        RESIDENT,
        b"""{"name": "oci:x:1", "digest": "sha256:11", "complete": true, "accepted": "sha256:22",
        "blobs": ["a.b"]}""",
        ResidentRecord(
            name="oci:x:1", blobs=("a.b",), digest="sha256:11", accepted="sha256:22", complete=True
        ),
    ),
    (
        RESIDENT,
        b'{"name": "oci:x:1", "digest": "sha256:11", "complete": false, "blobs": []}',
        ResidentRecord(name="oci:x:1", blobs=(), digest="sha256:11"),
    ),
]


def put(store: NodeStore, kind: Kind, key: str, content: bytes) -> Path:  # type: ignore[type-arg]
    path = store.root / "records" / kind.name / key.replace(":", "-")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(framed(content))
    return path


@pytest.fixture
def store(tmp_path: Path) -> NodeStore:
    return NodeStore(tmp_path / "store")


@pytest.mark.parametrize(("kind", "content", "expected"), BEFORE)
def test_what_was_written_before_is_read(
    store: NodeStore,
    kind: Kind,  # type: ignore[type-arg]
    content: bytes,
    expected: object,
) -> None:
    put(store, kind, ONE, content)
    assert store.records.read(kind, ONE) == expected
    assert list(store.records.each(kind)) == [(ONE, expected)]


@pytest.mark.parametrize(("kind", "content", "expected"), BEFORE)
def test_what_is_written_is_read_by_the_version_before(
    store: NodeStore,
    kind: Kind,  # type: ignore[type-arg]
    content: bytes,
    expected: object,
) -> None:
    """A service of that version may use the same store: what it looks at is where it was."""
    written = encode_record(expected)  # type: ignore[arg-type]
    assert decode_record(kind, written) == expected
    if kind is INDEX:
        assert written == content
        return
    then, now = json.loads(content), json.loads(written)
    if isinstance(then, dict):
        # It takes what is missing for false.
        then = {name: value for name, value in then.items() if value is not False}
        # What was added since it does not look at.
        now = {name: value for name, value in now.items() if name in then or value}
    assert now == then
    store.records.write(kind, ONE, expected)
    assert store.records.read(kind, ONE) == expected


def test_every_kind_has_a_record_of_before() -> None:
    assert {kind.name for kind, _, _ in BEFORE} == {kind.name for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    "content", [b'{"version": 2, "digest": "x"}', b'{"version": "x"}', b"[1]", b"{}", b"\xff", b""]
)
def test_what_cannot_be_used_is_made_anew_or_an_error(
    store: NodeStore,
    kind: Kind,  # type: ignore[type-arg]
    content: bytes,
) -> None:
    path = put(store, kind, ONE, content)
    if kind.can_be_remade:
        assert store.records.read(kind, ONE) is None
        assert list(store.records.each(kind)) == []
        return
    with pytest.raises(RecordError) as caught:
        store.records.read(kind, ONE)
    assert str(path) in (caught.value.hint or "")
    assert isinstance(caught.value, StoreError)


def test_nothing_is_evicted_while_it_is_not_known_what_stays(store: NodeStore) -> None:
    path = put(store, RESIDENT, name_digest("oci:x:1"), b'{"version": 2, "blobs": {"v2": []}}')
    with pytest.raises(RecordError, match="version 2"):
        store.remove_unused_blobs()
    with pytest.raises(RecordError, match="version 2"):
        store.records.resident("oci:x:1")
    path.unlink()
    assert store.remove_unused_blobs() == ((0, 0), frozenset())


def test_releases_of_a_later_version_are_not_forgotten(store: NodeStore) -> None:
    from lamina.errors import TrustError
    from lamina.oci.reference import parse_reference
    from lamina.opening.rollback_protection import check_release

    reference = parse_reference("registry.example/app:1")
    put(store, RELEASES, name_digest("docker://registry.example/app"), b'{"version": 2}')
    with pytest.raises(TrustError, match="version 2"):
        check_release(store, reference, 1)
