"""Sealing of pieces; tests named after the rows of the threat table they are about."""

from __future__ import annotations

import hashlib
import pickle
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from lamina.blob import seal as s
from lamina.blob.sealed_description import SealedBlob, decode_description, encode_description
from lamina.errors import Error, FormatError, IntegrityError, UnsupportedError, UsageError

KEY, ID = s.BlobKey(bytes(range(32))), bytes(range(16))
DATA = b"the compressed bytes of a piece"


def fresh(
    key: s.BlobKey = KEY, blob_id: bytes = ID, padding: s.Padding = s.Padding.NONE
) -> s.PieceSeal:
    return s.PieceSeal(key, blob_id, padding)


def test_the_construction_and_a_vector() -> None:
    information = b"cc-rafs/1 chunk\0" + ID
    key = HKDFExpand(hashes.SHA256(), 32, information).derive(bytes(range(32)))
    nonce = bytes(4) + (7).to_bytes(8, "big")
    lengths = b"".join(n.to_bytes(8, "big") for n in (7, len(DATA), 99))
    aad = b"cc-rafs/1\0" + ID + lengths + (3).to_bytes(4, "big")
    stored = fresh().seal(7, DATA, 99, 3)
    assert stored == AESGCM(key).encrypt(nonce, DATA, aad)
    assert (
        hashlib.sha256(stored).hexdigest()
        == "ecf2319c5106ef69ca4dd2ffa2f989802f3e53fc0f3a62dbc81470e110cb4f95"
    )
    assert fresh().open(7, stored, len(DATA), 99, 3) == DATA


@given(st.binary(max_size=300), st.sampled_from(s.Padding), st.integers(0, s.MAX_PIECES - 1))
def test_round_trip(data: bytes, padding: s.Padding, index: int) -> None:
    stored = fresh(padding=padding).seal(index, data, 5)
    assert len(stored) == padding.padded(len(data)) + 16
    assert fresh(padding=padding).open(index, stored, len(data), 5) == data


@given(st.integers(0, len(DATA) + 15), st.integers(1, 255))
def test_tamper_chunk(position: int, change: int) -> None:
    stored = bytearray(fresh().seal(0, DATA, 99))
    stored[position] ^= change
    with pytest.raises(IntegrityError, match="piece 0"):
        fresh().open(0, bytes(stored), len(DATA), 99)


def test_chunk_swap_inside_blob_across_blobs_across_images() -> None:
    stored = fresh().seal(1, DATA, 99)
    with pytest.raises(IntegrityError, match="piece 2"):
        fresh().open(2, stored, len(DATA), 99)
    for other in (fresh(blob_id=bytes(16)), fresh(key=s.BlobKey(bytes(32)))):
        with pytest.raises(IntegrityError):
            other.open(1, stored, len(DATA), 99)


def test_lengths_and_flags_are_bound() -> None:
    stored = fresh().seal(1, DATA, 99, 1)
    for arguments in ((len(DATA) - 1, 99, 1), (len(DATA), 98, 1), (len(DATA), 99, 0)):
        with pytest.raises(IntegrityError):
            fresh().open(1, stored, *arguments)
    padded = fresh(padding=s.Padding.PADME)
    stored = padded.seal(2, bytes(33), 99)
    for size in (34, 32, 0):
        with pytest.raises(IntegrityError):
            padded.open(2, stored, size, 99)


@given(st.integers(0, len(DATA) + 16))
def test_truncation_extension(size: int) -> None:
    stored = fresh().seal(0, DATA, 99)
    for wrong in (stored[:size], stored + bytes(size)):
        if wrong != stored:
            with pytest.raises(IntegrityError):
                fresh().open(0, wrong, len(DATA), 99)


def test_key_reuse_nonce() -> None:
    once = fresh()
    once.seal(3, DATA, 99)
    with pytest.raises(UsageError, match="already"):
        once.seal(3, b"other", 99)
    for index in (-1, s.MAX_PIECES):
        with pytest.raises(UsageError):
            once.seal(index, DATA, 99)
    assert s.BlobKey.new().reveal() != s.BlobKey.new().reveal()
    assert s.new_blob_id() != s.new_blob_id()


def test_equality_leak_dedup() -> None:
    """Private blobs never show equal content."""
    one, two = fresh(s.BlobKey.new(), s.new_blob_id()), fresh(s.BlobKey.new(), s.new_blob_id())
    assert len({one.seal(0, DATA, 9), one.seal(1, DATA, 9), two.seal(0, DATA, 9)}) == 3


def test_size_leak() -> None:
    padme = s.Padding.PADME.padded
    assert [padme(n) for n in (0, 1, 2, 8, 9, 10, 33, 1000, 1 << 20)] == [
        0, 1, 2, 8, 10, 10, 36, 1024, 1 << 20,
    ]  # fmt: skip
    lengths = {padme(n) for n in range(1, 100_000)}
    assert len(lengths) < 500
    assert all(n <= padme(n) <= n * 1.12 + 1 for n in range(1, 100_000, 7))


def test_keys_do_not_show() -> None:
    assert "(…)" in repr(KEY)
    with pytest.raises(TypeError):
        pickle.dumps(KEY)
    with pytest.raises(FormatError):
        s.BlobKey(b"short")
    with pytest.raises(FormatError):
        s.PieceSeal(KEY, b"short")


# ---- the description ---------------------------------------------------------------------------

BLOB = SealedBlob(blob_id=ID, key=KEY, piece_count=3, size_bytes=1000, root=bytes(32))


def test_description_round_trip() -> None:
    other = SealedBlob(
        blob_id=bytes(16), key=s.BlobKey.new(), piece_count=0, size_bytes=0, root=bytes(32),
        padding=s.Padding.PADME,
    )  # fmt: skip
    found = decode_description(encode_description([BLOB, other]))
    keys = [blob.key.reveal() for blob in found if blob.key is not None]
    assert other.key is not None
    assert keys == [KEY.reveal(), other.key.reveal()]
    assert [(blob.blob_id, blob.padding) for blob in found] == [
        (ID, s.Padding.NONE), (bytes(16), s.Padding.PADME),
    ]  # fmt: skip
    assert "AAECAwQ" not in repr(found)


def test_algorithm_downgrade() -> None:
    """One suite is known, and no other is taken, whatever its number."""
    text = encode_description([BLOB])
    for old, new in ((b"cc-rafs/1", b"cc-rafs/0"), (b'"version":1', b'"version":2')):
        with pytest.raises(UnsupportedError):
            decode_description(text.replace(old, new))


@pytest.mark.parametrize(
    "change",
    [
        (b'"pieces":3', b'"pieces":-1'),
        (b'"pieces":3', b'"pieces":4294967296'),
        (b'"size"', b'"Size"'),
        (b'"root":"00', b'"root":"'),
        (b'"root":"00', b'"root":"0g'),
        (b'"key":"AA', b'"key":"!!'),
        (b'"key":"AAEC', b'"key":"'),
        (b'"padding":"none"', b'"padding":"x"'),
        (b"]}", b'],"more":1}'),
        (b"}", b""),
        (b'"id":"00', b'"id":"'),
    ],
)
def test_broken_descriptions(change: tuple[bytes, bytes]) -> None:
    text = encode_description([BLOB])
    assert change[0] in text
    with pytest.raises(FormatError) as caught:
        decode_description(text.replace(*change))
    assert "AQID" not in str(caught.value)


def test_a_blob_twice() -> None:
    with pytest.raises(FormatError, match="twice"):
        decode_description(encode_description([BLOB, BLOB]))


@given(st.binary(max_size=100))
def test_hostile_bytes(data: Any) -> None:
    with pytest.raises(Error):
        decode_description(data)
