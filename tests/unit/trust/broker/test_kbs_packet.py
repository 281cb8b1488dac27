from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.trust.encryption.test_layers import PRIVATE

from lamina.errors import Error, FormatError, TrustError, UnsupportedError
from lamina.trust.broker import kbs_packet as kp
from lamina.trust.crypto.secret import Secret

KEK = bytes.fromhex("d99b7705b0ba7a168295b3a3367270b0dd9b371bf514ca8b9ba7f0a33711daea")
PACKET = (
    b'{"kid":"kbs:///default/test-key/1","wrapped_data":"/3LyhluQ5hn61UcAfgunWJG3MH9d2bdt1sFfMUreAe'
    b"TX/KuLrQEfep3P+KI4voUvTb3ckwxImQEY35buwGNUxdH5wrykBkLv91dErzEFYJYHOSfu0A1VgoA0IN9bFyD0N0dFrxq"
    b"42sCEU01BvcjFxe31huHOCMapGNe23SMgawsSPwdUsXkdQ7m0da9l2MzjzIkn4m7zVeIzpTUTrnKH23TfZeVeFgu6r81q"
    b'4AQ11PrAUeva2j2IehjCB2NTv9/zlrtM50vX8QzlMOVxVPY+Z6E=","iv":"AAAAAAAAAAAAAAAA",'
    b'"wrap_type":"A256GCM"}'
)
RESOURCE = kp.ResourcePath("default", "test-key", "1")
KEY = Secret(KEK)


def test_the_vector() -> None:
    packet = kp.parse_packet(PACKET)
    assert packet.resource == RESOURCE
    assert kp.unwrap(KEY, packet) == PRIVATE
    assert kp.wrap(KEY, RESOURCE, PRIVATE, bytes(12)) == PACKET


def test_the_iv_is_new_every_time() -> None:
    packets = [kp.parse_packet(kp.wrap(KEY, RESOURCE, b"x")) for _ in range(3)]
    assert len({packet.iv for packet in packets}) == 3
    assert all(kp.unwrap(KEY, packet) == b"x" for packet in packets)


def test_newer_packets() -> None:
    newer = {**json.loads(PACKET), "version": "0.1.0", "provider": "kbs", "annotations": {}}
    assert kp.unwrap(KEY, kp.parse_packet(json.dumps(newer).encode())) == PRIVATE


def test_wrap_type_downgrade_to_ctr_is_refused() -> None:
    """With CTR the same key stream would open it, and nobody would see flipped bits."""
    document = json.loads(PACKET)
    sealed = base64.b64decode(document["wrapped_data"])[:-16]
    counter = base64.b64decode(document["iv"]) + (2).to_bytes(4, "big")
    stream = Cipher(algorithms.AES256(KEK), modes.CTR(counter)).decryptor()
    assert stream.update(sealed) == PRIVATE
    document["wrap_type"] = "A256CTR"
    document["iv"] = base64.b64encode(counter).decode()
    document["wrapped_data"] = base64.b64encode(sealed).decode()
    with pytest.raises(UnsupportedError, match="A256CTR"):
        kp.parse_packet(json.dumps(document).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"more": 1},
        {"kid": "kbs:///a/b"},
        {"kid": 5},
        {"iv": "AAAA"},
        {"iv": None},
        {"wrapped_data": "!"},
        {"wrap_type": None},
        {"provider": "aliyun"},
    ],
)
def test_broken_packets(change: dict[str, Any]) -> None:
    with pytest.raises((FormatError, UnsupportedError)):
        kp.parse_packet(json.dumps({**json.loads(PACKET), **change}).encode())


def test_keys_and_changes() -> None:
    packet = kp.parse_packet(PACKET)
    changed = packet._replace(wrapped=bytes((packet.wrapped[0] ^ 1,)) + packet.wrapped[1:])
    with pytest.raises(TrustError, match="kbs:///default/test-key/1"):
        kp.unwrap(KEY, changed)
    with pytest.raises(TrustError):
        kp.unwrap(Secret(bytes(32)), packet)
    with pytest.raises(TrustError):
        kp.unwrap(KEY, packet._replace(wrapped=b""))
    with pytest.raises(FormatError, match="31 bytes"):
        kp.unwrap(Secret(bytes(31)), packet)


@pytest.mark.parametrize("address", ["", "evil.example:8080", "127.0.0.1"])
def test_fake_kbs_redirect(address: str) -> None:
    assert kp.parse_resource(f"kbs://{address}/a/b.c/d-e_1") == ("a", "b.c", "d-e_1")
    assert str(kp.parse_resource(f"kbs://{address}/a/b/c")) == "kbs:///a/b/c"


@pytest.mark.parametrize(
    "uri",
    [
        "kbs:///a/b",
        "kbs:///a/b/c/d",
        "kbs:///a/b/",
        "kbs:///a/../c",
        "kbs:///a/.b/c",
        "kbs:///a/b/c?x",
        "kbs:///a/b/ü",
        "kbs:///a/b/c\n",
        "kbs+aws:///a/b/c",
        "http://a/b/c/d",
        "",
        "kbs:///" + "a" * 2000 + "/b/c",
    ],
)
def test_resource_names(uri: str) -> None:
    with pytest.raises(FormatError):
        kp.parse_resource(uri)


@given(st.binary(max_size=100))
def test_hostile_bytes(data: bytes) -> None:
    with pytest.raises(Error):
        kp.parse_packet(data)
