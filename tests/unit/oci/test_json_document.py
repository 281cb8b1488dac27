"""JSON that Go programs write, and JSON in which two readers see two documents."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lamina.errors import FormatError
from lamina.oci import manifest as m

DIGEST = "sha256:" + "ab" * 32
CONFIG = {"mediaType": m.OCI_CONFIG, "digest": DIGEST, "size": 7}
LAYER = {"mediaType": m.OCI_LAYER_GZIP, "digest": DIGEST, "size": 1}
ENTRY = {"mediaType": m.OCI_MANIFEST, "digest": DIGEST, "size": 3}


def image(**more: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "config": CONFIG, "layers": [LAYER], **more}).encode()


def index(*entries: Any, **more: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "manifests": entries, **more}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b'{"schemaVersion":2,"manifests":null}',
        b'{"schemaVersion":2,"mediaType":"%s","manifests":null}' % m.OCI_INDEX.encode(),
        b'{"schemaVersion":2,"mediaType":"%s"}' % m.OCI_INDEX.encode(),
    ],
)
def test_an_index_without_entries(data: bytes) -> None:
    assert m.detect_media_type(data) == m.OCI_INDEX
    assert m.parse_index(data).manifests == ()


def test_where_an_index_must_be_nothing_is_an_empty_one() -> None:
    assert m.parse_index(b'{"schemaVersion":2}').manifests == ()
    with pytest.raises(FormatError, match="neither"):
        m.parse_manifest(b'{"schemaVersion":2}')
    with pytest.raises(FormatError, match="schemaVersion"):
        m.parse_index(b"{}")


@pytest.mark.parametrize("platform", [{}, {"os": "linux"}, {"architecture": "amd64"}, None])
def test_a_platform_that_says_little(platform: Any) -> None:
    found = m.parse_index(index({**ENTRY, "platform": platform}))
    assert found.manifests[0].digest == DIGEST
    assert found.unreadable == ()


@pytest.mark.parametrize(
    "entry",
    [
        {**ENTRY, "digest": "sha384:" + "ab" * 48},
        {**ENTRY, "digest": "sha256:short"},
        {**ENTRY, "size": -1},
        {"digest": DIGEST},
        {**ENTRY, "platform": "linux"},
        {},
        None,
        7,
    ],
)
def test_entries_that_cannot_be_used_are_left_out(entry: Any) -> None:
    found = m.parse_manifest(index(entry, ENTRY))
    assert isinstance(found, m.ImageIndex)
    assert [kept.digest for kept in found.manifests] == [DIGEST]
    assert len(found.unreadable) == 1
    assert "entry 0" in found.unreadable[0]


@pytest.mark.parametrize(
    "data",
    [
        b'{"schemaVersion":2,"config":1,"config":2,"layers":[]}',
        image(config={**CONFIG}).replace(b'"size": 7', b'"size": 7, "size": 8'),
        image(annotations={"a": "1"}).replace(b'"a": "1"', b'"a": "1", "a": "2"'),
        image(Layers=[]),
        image(config={**CONFIG, "Digest": DIGEST}),
        image(layers=[{**LAYER, "MEDIATYPE": "x"}]),
        # Go takes the long s and the Kelvin sign for their letters.
        image(layers=[{**LAYER, "\u017fize": 9}]),
    ],
)
def test_a_key_that_is_there_twice_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="is there twice"):
        m.parse_image_manifest(data)


@pytest.mark.parametrize(
    "data",
    [
        b'{"schemaVersion":2,"manifests":[],"layers":[],"Layers":null}',
        b'{"schemaVersion":2,"manifests":[],"config":{},"Config":null}',
        b'{"schemaVersion":2,"manifests":[],"fsLayers":[],"FSLayers":null}',
    ],
)
def test_no_document_is_two_by_the_letters_of_its_keys(data: bytes) -> None:
    """A reader that heeds them sees an image too (CVE-2021-41190)."""
    with pytest.raises(FormatError, match="is there twice"):
        m.parse_manifest(data)


def test_many_keys_that_are_there_twice_take_no_time() -> None:
    keys = ",".join(f'"{n}":1' for n in range(100_000))
    with pytest.raises(FormatError, match="'0' is there twice"):
        m.parse_document(f"{{{keys},{keys}}}".encode())


def test_letters_of_fields_as_go_reads_them() -> None:
    data = image().replace(b'"layers"', b'"Layers"').replace(b'"mediaType"', b'"MediaType"')
    assert m.parse_image_manifest(data).layers[0].media_type == m.OCI_LAYER_GZIP
    config = m.parse_config(b'{"OS":"linux","config":{"cmd":["a"],"Labels":{"x":"1","X":"2"}}}')
    assert (config.os, config.config.cmd) == ("linux", ("a",))
    assert config.config.labels == {"x": "1", "X": "2"}
    document = m.parse_document(b'{"RootFS":{},"Mine":1}', kind=m.ImageConfig)
    assert document == {"rootfs": {}, "Mine": 1}


def test_nulls_of_maps_stay() -> None:
    config = m.parse_config(b'{"config":{"Volumes":{"/v":null},"Labels":{"a":null},"Cmd":null}}')
    assert config.config.volumes == {"/v": None}
    assert config.config.labels == {"a": ""}


@pytest.mark.parametrize(
    "data",
    [
        image(layers=[LAYER] * (m.MAX_LAYERS + 1)),
        image(layers=[LAYER] * 15_000),
        image(annotations={str(n): "" for n in range(5000)}),
        index(*[ENTRY] * 20_000),
    ],
)
def test_documents_of_too_much(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"length <= |more than \d+"):
        m.parse_manifest(data)


@pytest.mark.parametrize("value", ["{}", "[]", "0", "[[[[]]]]"])
def test_values_that_nobody_reads_are_bounded_too(value: str) -> None:
    """Short ones take many times their bytes, and seconds."""
    data = f'{{"more":[{",".join([value] * (1 << 20))}]}}'.encode()
    with pytest.raises(FormatError, match="more than 1048576 values"):
        m.parse_config(data)


@pytest.mark.parametrize(
    "part",
    [
        {"rootfs": {"type": "layers", "diff_ids": [DIGEST] * 15_000}},
        {"history": [{}] * 5000},
    ],
)
def test_configurations_of_too_much(part: Any) -> None:
    with pytest.raises(FormatError, match="length <= "):
        m.parse_config(json.dumps(part).encode())
