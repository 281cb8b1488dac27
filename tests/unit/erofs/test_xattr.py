from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.erofs.xattr import MAX_AREA_SIZE, decode_xattrs, encode_xattrs, is_storable
from lamina.errors import FormatError

SUFFIXES = st.binary(min_size=1, max_size=255).filter(lambda name: b"\0" not in name)
FULL_NAMES = st.one_of(
    st.sampled_from([b"system.posix_acl_access", b"system.posix_acl_default"]),
    st.builds(
        lambda prefix, suffix: prefix + suffix,
        st.sampled_from([b"user.", b"trusted.", b"security."]),
        SUFFIXES,
    ),
)


@given(st.dictionaries(FULL_NAMES, st.binary(max_size=200), min_size=1, max_size=8))
def test_round_trip(xattrs: dict[bytes, bytes]) -> None:
    area = encode_xattrs(xattrs)
    assert len(area) % 4 == 0
    assert decode_xattrs(area, 3) == xattrs
    assert encode_xattrs(dict(reversed(xattrs.items()))) == area
    assert all(map(is_storable, xattrs))


def test_bytes_on_disk() -> None:
    area = encode_xattrs({b"user.ab": b"xyz", b"system.posix_acl_access": b"1"})
    assert area == bytes(12) + b"\x00\x02\x01\x001" + bytes(3) + b"\x02\x01\x03\x00abxyz" + bytes(3)


@pytest.mark.parametrize(
    "name", [b"user.", b"system.other", b"btrfs.x", b"", b"security", b"user.a\0b"]
)
def test_names_of_no_namespace(name: bytes) -> None:
    assert not is_storable(name)
    with pytest.raises(FormatError, match="namespace"):
        encode_xattrs({name: b""})


def test_sizes_are_bounded() -> None:
    with pytest.raises(FormatError, match="too long"):
        encode_xattrs({b"user.a": bytes(65536)})
    with pytest.raises(FormatError, match="too long"):
        encode_xattrs({b"user." + b"a" * 256: b""})
    many = {b"user.%d" % number: bytes(65535) for number in range(5)}
    with pytest.raises(FormatError, match=f"at most {MAX_AREA_SIZE}"):
        encode_xattrs(many)


@pytest.mark.parametrize(
    "area",
    [
        b"",
        bytes(4) + b"\x01" + bytes(7),
        bytes(12) + b"\x01\x05\x00\x00a" + bytes(3),
        bytes(12) + b"\x01\x01\xff\x00a" + bytes(3),
        bytes(12) + b"\xff\x01\x00\x00a" + bytes(3),
        bytes(12) + b"\x00\x01\x00\x00",
        bytes(12) + b"\x01\x02\x00\x00a" + bytes(3),
        bytes(12) + b"\x01\x01\x00\x00\0" + bytes(3),
        bytes(12) + (b"\x01\x01\x00\x00a" + bytes(3)) * 2,
    ],
)
def test_damaged_areas_name_the_inode(area: bytes) -> None:
    with pytest.raises(FormatError, match="inode 42"):
        decode_xattrs(area, 42)


@given(st.integers(0, 40), st.binary(max_size=160))
def test_garbage_never_leaves_the_area(words: int, noise: bytes) -> None:
    area = (bytes(12) + noise)[: 12 + 4 * words]
    area = area[: len(area) // 4 * 4]
    try:
        found = decode_xattrs(area, 1)
        assert sum(map(len, found.values())) <= len(area)
    except FormatError:
        pass
