"""Pieces that images of one tenant share, and pieces in clear."""

from __future__ import annotations

import hashlib
import hmac
import pickle
import struct

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from lamina.blob.seal import Padding
from lamina.blob.seal_class import (
    MESSAGE_BYTES,
    PieceKeys,
    PublicPieces,
    SealClass,
    TenantKey,
    TenantPieces,
    TenantSeal,
)
from lamina.blob.sealed_description import SealedBlob, decode_description, encode_description
from lamina.errors import FormatError, IntegrityError, UsageError

KEY, OTHER = TenantKey(bytes(32)), TenantKey(bytes(31) + b"\1")
DATA = b"the compressed bytes of a piece"


def sealed(
    data: bytes = DATA, key: TenantKey = KEY, raw: int = 99, flags: int = 1,
    padding: Padding = Padding.NONE,
) -> tuple[bytes, bytes]:  # fmt: skip
    """The stored form and the key of a piece."""
    seal = TenantSeal(key, padding)
    message = seal.message(data, raw, flags)
    return seal.seal(data, message), seal.keys(message).reveal()


def test_the_construction_and_a_vector() -> None:
    message = hashlib.sha256(DATA).digest() + struct.pack(">QQI", 99, len(DATA), 1)
    key = hmac.digest(bytes(32), b"cc-rafs/1 tenant\0" + message, "sha256")
    assert len(message) == MESSAGE_BYTES
    assert sealed() == (AESGCM(key).encrypt(bytes(12), DATA, None), key)
    assert key.hex() == "d1ea00e139c90ed0c212d3ce221a58d6ab073e0a524c564380ded0e8f922c08d"


@given(st.binary(max_size=300), st.sampled_from(Padding))
def test_round_trip(data: bytes, padding: Padding) -> None:
    pairs = [sealed(part, padding=padding) for part in (data, DATA)]
    opener = TenantPieces(PieceKeys(b"".join(key for _, key in pairs)), padding)
    for index, (stored, part) in enumerate(zip(pairs, (data, DATA), strict=True)):
        assert len(stored[0]) == opener.stored_size(len(part)) == padding.padded(len(part)) + 16
        assert opener.open(index, stored[0], len(part), 99, 1) == part


def test_equal_pieces_of_a_tenant_look_the_same_and_no_others() -> None:
    assert sealed() == sealed()
    assert sealed(key=OTHER)[0] != sealed()[0]


def test_no_key_sees_two_messages() -> None:
    """All that decides the plaintext, with its padding, is in the key."""
    data = bytes(33)
    variants = [
        sealed(data, raw=raw, flags=flags, padding=padding)
        for raw in (98, 99)
        for flags in (0, 1)
        for padding in Padding
    ]
    variants.append(sealed(data + b"\0\0\0"))
    assert len({key for _, key in variants}) == len(variants) == 9


@given(st.integers(0, len(DATA) + 15), st.integers(1, 255))
def test_tamper_chunk(position: int, change: int) -> None:
    stored, key = sealed()
    changed = bytearray(stored)
    changed[position] ^= change
    with pytest.raises(IntegrityError, match="piece 0"):
        TenantPieces(PieceKeys(key)).open(0, bytes(changed), len(DATA), 99)


def test_pieces_of_other_places_and_lengths() -> None:
    (one, first), (two, second) = sealed(), sealed(DATA[::-1])
    opener = TenantPieces(PieceKeys(first + second))
    assert opener.open(1, two, len(DATA), 99) == DATA[::-1]
    for index, stored, size in ((1, one, 31), (0, two, 31), (0, one[:-1], 31), (0, one, 30),
                                (2, one, 31), (-1, two, 31)):  # fmt: skip
        with pytest.raises(IntegrityError):
            opener.open(index, stored, size, 99)


def test_public_pieces() -> None:
    public = PublicPieces()
    assert public.stored_size(31) == 31
    assert public.open(5, DATA, len(DATA), 99) == DATA
    with pytest.raises(IntegrityError):
        public.open(5, DATA[:-1], len(DATA), 99)


def test_key_files() -> None:
    key = bytes(range(32))
    for data in (key, key.hex().encode(), key.hex().encode() + b"\n"):
        assert TenantKey.parse(data, "k").reveal() == key
    for data in (b"", key[:-1], key + b"\n", b"g" * 64, key.hex().encode() + b"00"):
        with pytest.raises(UsageError, match="tenant key"):
            TenantKey.parse(data, "k")


def test_keys_do_not_show() -> None:
    for key in (KEY, PieceKeys(bytes(range(64)))):
        assert "\\x" not in repr(key)
        with pytest.raises(TypeError):
            pickle.dumps(key)
    with pytest.raises(FormatError):
        PieceKeys(bytes(33))


def described(**more: object) -> SealedBlob:
    fields = {"blob_id": bytes(16), "piece_count": 2, "size_bytes": 9, "root": bytes(32)}
    return SealedBlob(**{**fields, **more})  # type: ignore[arg-type]


def test_description() -> None:
    tenant = described(piece_keys=PieceKeys(bytes(range(64))), padding=Padding.PADME)
    public = described(blob_id=bytes(15) + b"\1")
    found = decode_description(encode_description([tenant, public]))
    assert [blob.seal_class for blob in found] == [SealClass.TENANT, SealClass.PUBLIC]
    assert found[0].piece_keys is not None
    assert found[0].piece_keys.reveal() == bytes(range(64))
    assert isinstance(found[0].opener(), TenantPieces)
    assert isinstance(found[1].opener(), PublicPieces)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"class":"tenant"', b'"class":"public"'),
        (b'"class":"tenant"', b'"class":"private"'),
        (b'"class":"tenant",', b""),
        (b'"class":"tenant"', b'"class":"all"'),
        (b'"class":"public"', b'"class":"tenant"'),
        (b'"class":"public",', b""),
        (b'"pieces":2', b'"pieces":3'),
        (b'"keys":"AAEC', b'"keys":"!AEC'),
        (b'"keys":"AAEC', b'"keys":"'),
        (b'"keys"', b'"key"'),
    ],
)
def test_broken_descriptions(old: bytes, new: bytes) -> None:
    tenant = described(piece_keys=PieceKeys(bytes(range(64))))
    text = encode_description([tenant, described(blob_id=bytes(15) + b"\1")])
    assert old in text
    with pytest.raises(FormatError) as caught:
        decode_description(text.replace(old, new, 1))
    assert "AAEC" not in str(caught.value)
