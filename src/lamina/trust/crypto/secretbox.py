"""XSalsa20-Poly1305, the "secretbox" of NaCl: what cosign encrypts private keys with.

The stream cipher is plain Python, slow, and meant for a few hundred bytes; Poly1305 is of
``cryptography``.  Sources: D. J. Bernstein, "Extending the Salsa20 nonce" (2011) and
"Cryptography in NaCl" §10.
"""

from __future__ import annotations

import struct
from typing import Final

from lamina.errors import TrustError

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 24
_TAG_BYTES: Final = 16
_CONSTANT: Final = struct.unpack("<4I", b"expand 32-byte k")
_MASK: Final = 0xFFFFFFFF
_COLUMNS: Final = ((0, 4, 8, 12), (5, 9, 13, 1), (10, 14, 2, 6), (15, 3, 7, 11))
_ROWS: Final = ((0, 1, 2, 3), (5, 6, 7, 4), (10, 11, 8, 9), (15, 12, 13, 14))


def seal(key: bytes, nonce: bytes, plain: bytes) -> bytes:
    """Return the 16-byte tag and the ciphertext."""
    from cryptography.hazmat.primitives.poly1305 import Poly1305

    stream = _stream(key, nonce, 32 + len(plain))
    sealed = _xor(plain, stream[32:])
    return Poly1305.generate_tag(stream[:32], sealed) + sealed


def open_box(key: bytes, nonce: bytes, box: bytes) -> bytes:
    """Return the plaintext.  Raises TrustError if key, nonce or box are not the right ones."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.poly1305 import Poly1305

    tag, sealed = box[:_TAG_BYTES], box[_TAG_BYTES:]
    stream = _stream(key, nonce, 32 + len(sealed))
    try:
        Poly1305.verify_tag(stream[:32], sealed, tag)
    except InvalidSignature:
        raise TrustError("the box cannot be opened with this key") from None
    return _xor(sealed, stream[32:])


def _xor(one: bytes, other: bytes) -> bytes:
    size = len(one)
    number = int.from_bytes(one, "little") ^ int.from_bytes(other[:size], "little")
    return number.to_bytes(size, "little")


def _stream(key: bytes, nonce: bytes, size_bytes: int) -> bytes:
    """XSalsa20: HSalsa20 makes the key of a Salsa20 with the rest of the nonce."""
    words = _rounds(_state(key, struct.unpack("<4I", nonce[:16])))
    subkey = struct.pack("<8I", *(words[i] for i in (0, 5, 10, 15, 6, 7, 8, 9)))
    head = struct.unpack("<2I", nonce[16:])
    out = b""
    for block in range((size_bytes + 63) // 64):
        state = _state(subkey, (*head, block & _MASK, block >> 32))
        mixed = zip(_rounds(state), state, strict=True)
        out += struct.pack("<16I", *((one + other) & _MASK for one, other in mixed))
    return out[:size_bytes]


def _state(key: bytes, middle: tuple[int, ...]) -> list[int]:
    k = struct.unpack("<8I", key)
    c = _CONSTANT
    return [c[0], *k[:4], c[1], *middle, c[2], *k[4:], c[3]]


def _rounds(state: list[int]) -> list[int]:
    x = state[:]
    for _ in range(10):
        for quarter in (*_COLUMNS, *_ROWS):
            a, b, c, d = quarter
            x[b] ^= _rotated(x[a] + x[d], 7)
            x[c] ^= _rotated(x[b] + x[a], 9)
            x[d] ^= _rotated(x[c] + x[b], 13)
            x[a] ^= _rotated(x[d] + x[c], 18)
    return x


def _rotated(value: int, bits: int) -> int:
    value &= _MASK
    return (value << bits | value >> (32 - bits)) & _MASK
