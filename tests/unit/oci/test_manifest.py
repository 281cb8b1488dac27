"""Manifests, indexes and configurations: good ones of OCI and Docker, contradictory and hostile
ones.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.errors import Error, FormatError, UnsupportedError
from lamina.oci import manifest as m
from lamina.oci.json_document import MAX_DEPTH

DIGEST = "sha256:" + "ab" * 32
CONFIG = {"mediaType": m.OCI_CONFIG, "digest": DIGEST, "size": 7}
LAYER = {"mediaType": m.OCI_LAYER_GZIP, "digest": DIGEST, "size": 1}
IMAGE: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": m.OCI_MANIFEST,
    "config": CONFIG,
    "layers": [LAYER],
}
INDEX: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": m.OCI_INDEX,
    "manifests": [{"mediaType": m.OCI_MANIFEST, "digest": DIGEST, "size": 3}],
}


def encoded(document: object) -> bytes:
    return json.dumps(document).encode()


def test_image_manifest() -> None:
    data = encoded({**IMAGE, "annotations": {"a": "b"}, "unknown": [1]})
    manifest = m.parse_image_manifest(data)
    assert manifest.config == m.Descriptor(media_type=m.OCI_CONFIG, digest=DIGEST, size=7)
    assert manifest.layers[0].hex == "ab" * 32
    assert manifest.raw == data
    assert not manifest.is_nydus


def test_index_with_platform_and_artifact_type() -> None:
    entry = {
        **INDEX["manifests"][0],
        "artifactType": m.NYDUS_MANIFEST_ARTIFACT,
        "platform": {"os": "linux", "architecture": "arm", "variant": "v7", "os.version": "1"},
    }
    index = m.parse_index(encoded({**INDEX, "manifests": [entry]}))
    platform = index.manifests[0].platform
    assert platform is not None
    assert (str(platform), platform.os_version) == ("linux/arm/v7", "1")
    assert index.manifests[0].artifact_type == m.NYDUS_MANIFEST_ARTIFACT


def test_docker_types_are_taken() -> None:
    image = encoded({**IMAGE, "mediaType": m.DOCKER_MANIFEST})
    assert m.detect_media_type(image) == m.DOCKER_MANIFEST
    index = encoded({**INDEX, "mediaType": m.DOCKER_INDEX})
    assert isinstance(m.parse_manifest(index), m.ImageIndex)


def test_a_missing_media_type_is_told_by_the_content() -> None:
    image = {key: value for key, value in IMAGE.items() if key != "mediaType"}
    assert m.detect_media_type(encoded(image)) == m.OCI_MANIFEST
    index = {key: value for key, value in INDEX.items() if key != "mediaType"}
    assert m.detect_media_type(encoded(index)) == m.OCI_INDEX


def test_nulls_are_absent_values() -> None:
    manifest = m.parse_image_manifest(encoded({**IMAGE, "layers": None, "annotations": None}))
    assert (manifest.layers, manifest.annotations) == ((), {})
    config = m.parse_config(
        encoded({"architecture": "amd64", "os": "linux", "config": {"Cmd": None, "Env": ["A=b"]}})
    )
    assert (config.config.cmd, config.config.env) == ((), ("A=b",))


def test_nydus_manifest_is_recognised_by_its_last_layer() -> None:
    boot = {**LAYER, "annotations": {m.NYDUS_BOOTSTRAP_MARK: "true"}}
    assert m.parse_image_manifest(encoded({**IMAGE, "layers": [LAYER, boot]})).is_nydus
    assert not m.parse_image_manifest(encoded({**IMAGE, "layers": [boot, LAYER]})).is_nydus


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({**IMAGE, "manifests": []}, "both an index and an image"),
        ({**INDEX, "layers": []}, "both an index and an image"),
        ({**INDEX, "config": CONFIG}, "both an index and an image"),
        ({"schemaVersion": 2}, "neither"),
        ({**IMAGE, "mediaType": m.OCI_INDEX}, "not what it holds"),
        ({**INDEX, "mediaType": m.OCI_MANIFEST}, "not what it holds"),
        ({**IMAGE, "mediaType": "text/html"}, "not what it holds"),
        ({**IMAGE, "schemaVersion": 3}, "schemaVersion 3"),
        ({**IMAGE, "schemaVersion": "2"}, "malformed"),
        ({**IMAGE, "config": {**CONFIG, "digest": "sha256:../../etc/passwd"}}, "digest"),
        ({**IMAGE, "config": {**CONFIG, "digest": DIGEST + "\n"}}, "digest"),
        ({**IMAGE, "config": {**CONFIG, "digest": "md5:" + "a" * 32}}, "digest"),
        ({**IMAGE, "config": {**CONFIG, "size": -1}}, "size"),
        ({**IMAGE, "config": {**CONFIG, "size": 1 << 70}}, "size"),
        ({**IMAGE, "config": {"mediaType": "x", "digest": DIGEST}}, "size"),
        ({**IMAGE, "layers": {"0": LAYER}}, "array"),
        ([IMAGE], "malformed"),
        ("x", "malformed"),
        (7, "malformed"),
    ],
)
def test_refuse(document: object, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        m.parse_manifest(encoded(document))


def test_schema1_is_refused_by_name() -> None:
    for document in ({"schemaVersion": 1, "fsLayers": []}, {"schemaVersion": 2, "fsLayers": [1]}):
        with pytest.raises(UnsupportedError, match="schema 1"):
            m.parse_manifest(encoded(document))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe{}",
        b'{"schemaVersion":2,"mediaType":"\xff","config":1}',
        b"[" * 100_000,
        b'{"config":' * 5000 + b"1" + b"}" * 5000,
        b" " * (m.MAX_MANIFEST_BYTES + 1),
    ],
)
def test_hostile_bytes_are_a_format_error(data: bytes) -> None:
    for parse in (m.parse_manifest, m.parse_config, m.parse_index, m.parse_document):
        if parse in (m.parse_config, m.parse_document) and len(data) > m.MAX_MANIFEST_BYTES:
            continue
        with pytest.raises(FormatError):
            parse(data)


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_nesting_has_a_bound_of_its_own(opening: bytes) -> None:
    """Whatever the version of Python would take."""
    closing = b"]" if opening == b"[" else b"}"

    def nested(depth: int) -> bytes:
        return b'{"x":' + opening * (depth - 1) + b"1" + closing * (depth - 1) + b"}"

    assert m.parse_document(nested(MAX_DEPTH))
    with pytest.raises(FormatError, match="nested too deeply"):
        m.parse_document(nested(MAX_DEPTH + 1))
    wide = b'{"x":[' + b"[],{}," * 1000 + b"1]}"
    assert m.parse_document(wide)


def test_kind_that_is_not_wanted() -> None:
    with pytest.raises(FormatError, match="index must be"):
        m.parse_index(encoded(IMAGE))
    with pytest.raises(FormatError, match="image manifest must be"):
        m.parse_image_manifest(encoded(INDEX))


def test_encoding_is_what_go_tools_expect_and_always_the_same() -> None:
    manifest = m.Manifest(
        schema_version=2,
        media_type=m.OCI_MANIFEST,
        config=m.describe(m.OCI_CONFIG, b"{}"),
        layers=(),
    )
    document = json.loads(m.encode(manifest))
    assert document["schemaVersion"] == 2
    assert document["layers"] == []
    assert document["config"]["size"] == 2
    assert "annotations" not in document
    assert m.encode(manifest) == m.encode(m.parse_manifest(m.encode(manifest)))
    assert manifest.raw == m.encode(manifest)


def test_image_config_round_trip() -> None:
    config = m.parse_config(
        encoded(
            {
                "architecture": "arm64",
                "os": "linux",
                "variant": "v8",
                "config": {"User": "1:2", "WorkingDir": "/w", "ExposedPorts": {"80/tcp": {}}},
                "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
                "history": [{"created_by": "x", "empty_layer": True}],
            }
        )
    )
    assert str(config.platform) == "linux/arm64/v8"
    assert config.config.exposed_ports == {"80/tcp": {}}
    assert config.rootfs.diff_ids == (DIGEST,)
    assert msgspec.json.decode(m.encode(config), type=m.ImageConfig) == config


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(DIGEST),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["schemaVersion", "mediaType", "layers", "config", "manifests", "size"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@given(JSON)
def test_any_json_is_parsed_or_refused(document: object) -> None:
    for parse in (m.parse_manifest, m.parse_config):
        try:
            parse(encoded(document))
        except Error as error:
            assert str(error)
