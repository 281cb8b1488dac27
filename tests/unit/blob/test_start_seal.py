"""Sealed start artifacts: what was sealed is opened, whole and in its place, and by nobody else."""

from __future__ import annotations

import hashlib
import io

import pytest

from lamina.blob.seal import BlobKey, HiddenKey
from lamina.blob.sealed_description import SealedBlob
from lamina.blob.start_seal import (
    HEAD_BYTES,
    SEGMENT_BYTES,
    SealedStart,
    open_label,
    seal_label,
    seal_start,
    start_secret,
)
from lamina.errors import Error, FormatError, IntegrityError

SECRET = HiddenKey(b"k" * 32)
BINDING = hashlib.sha256(b"manifest").digest()
STORED = SEGMENT_BYTES + 16


def noise(size: int) -> bytes:
    return hashlib.shake_128(b"artifact").digest(size)


def opened(stored: bytes, secret: HiddenKey = SECRET, binding: bytes = BINDING) -> bytes:
    stream = SealedStart(io.BytesIO(stored), len(stored), secret, binding)
    return b"".join(iter(lambda: stream.read(10_000), b""))


@pytest.mark.parametrize("size", [1, SEGMENT_BYTES - 8, SEGMENT_BYTES - 7, 300_000])
def test_what_was_sealed_is_opened_and_its_length_is_hidden(size: int) -> None:
    artifact = noise(size)
    stored = seal_start(artifact, SECRET, BINDING)
    assert opened(stored) == artifact
    assert (len(stored) - HEAD_BYTES) % STORED == 0
    assert size < 16 or artifact[:16] not in stored
    assert seal_start(artifact, SECRET, BINDING)[HEAD_BYTES:] != stored[HEAD_BYTES:]


def moved(stored: bytes) -> bytes:
    one, two = HEAD_BYTES + STORED, HEAD_BYTES + 2 * STORED
    return stored[:HEAD_BYTES] + stored[one:two] + stored[HEAD_BYTES:one] + stored[two:]


def flipped(stored: bytes, place: int) -> bytes:
    changed = bytearray(stored)
    changed[place] ^= 1
    return bytes(changed)


@pytest.mark.parametrize(
    "how", ["first byte", "salt", "segment", "tag", "moved", "left out", "cut", "twice", "short"]
)
def test_whatever_is_done_to_it_is_an_error(how: str) -> None:
    stored = seal_start(noise(300_000), SECRET, BINDING)
    changed = {
        "first byte": flipped(stored, 0),
        "salt": flipped(stored, 20),
        "segment": flipped(stored, HEAD_BYTES + STORED + 77),
        "tag": flipped(stored, -1),
        "moved": moved(stored),
        "left out": stored[:HEAD_BYTES] + stored[HEAD_BYTES + STORED :],
        "cut": stored[:-STORED],
        "twice": stored + stored[-STORED:],
        "short": stored[:-1],
    }[how]
    with pytest.raises((IntegrityError, FormatError)):
        opened(changed)


def test_another_image_or_key_does_not_open_it() -> None:
    stored = seal_start(noise(5000), SECRET, BINDING)
    for secret, binding in ((HiddenKey(b"x" * 32), BINDING), (SECRET, bytes(32))):
        with pytest.raises(IntegrityError):
            opened(stored, secret, binding)


def test_a_stream_that_ends_before_its_size_is_an_error() -> None:
    stored = seal_start(noise(300_000), SECRET, BINDING)
    stream = SealedStart(io.BytesIO(stored[:-STORED]), len(stored), SECRET, BINDING)
    with pytest.raises(Error):
        while stream.read():
            pass


def test_labels_open_for_their_image_and_key_only() -> None:
    text = seal_label(b"[node]", SECRET, BINDING)
    assert open_label(text, SECRET, BINDING) == b"[node]"
    assert len(text) == len(seal_label(b"x" * 200, SECRET, BINDING))
    for changed in ("", "!", text[:-8], "A" + text[1:], "A" * 20_000, "é"):
        assert open_label(changed, SECRET, BINDING) is None
    assert open_label(text, SECRET, bytes(32)) is None
    assert open_label(text, HiddenKey(b"x" * 32), BINDING) is None


def test_the_secret_follows_from_all_keys_and_shows_none() -> None:
    def blob(key: BlobKey | None, name: int = 1) -> SealedBlob:
        return SealedBlob(
            blob_id=bytes([name]) * 16, piece_count=1, size_bytes=1, root=bytes(32), key=key
        )

    one, two = blob(BlobKey(b"1" * 32)), blob(BlobKey(b"2" * 32), 2)
    secret = start_secret([one, two])
    assert secret is not None
    assert "1" * 32 not in repr(secret)
    other = start_secret([one])
    assert other is not None
    assert secret.reveal() != other.reveal()
    assert start_secret([blob(None)]) is None
