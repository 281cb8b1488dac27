from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.store import readiness
from lamina.store.readiness import (
    CLEAN_OFFSET,
    HEADER_SIZE,
    Header,
    ReadinessMap,
    create_map,
    decode_header,
    encode_header,
)

BOOT = bytes(range(16))


def open_map(path: Path, expected: Header) -> ReadinessMap | None:
    found = readiness.open_map(path, expected)
    if found is None:
        return None
    os.close(found[1])
    return found[0]


HEADER = Header(10, 40960, 77, b"i" * 32, BOOT)


def unverified(found: ReadinessMap) -> int:
    return sum(map(found.is_unverified, range(found.chunk_count)))


def test_header_has_the_documented_layout() -> None:
    encoded = encode_header(HEADER)
    assert len(encoded) == 112 == CLEAN_OFFSET
    assert encoded[:8] == b"LAMREADY"
    assert int.from_bytes(encoded[8:12], "little") == 2
    assert int.from_bytes(encoded[16:24], "little") == 10
    assert int.from_bytes(encoded[24:32], "little") == 40960
    assert int.from_bytes(encoded[32:40], "little") == 77
    assert encoded[40:72] == b"i" * 32
    assert encoded[72:88] == BOOT
    assert int.from_bytes(encoded[88:96], "little") == 1
    assert encoded[96:] == bytes(16)
    assert decode_header(encoded.ljust(HEADER_SIZE, b"\0")) == HEADER


@given(st.integers(0, 111), st.integers(1, 255))
def test_a_changed_byte_of_the_header_is_noticed(position: int, change: int) -> None:
    damaged = bytearray(encode_header(HEADER).ljust(HEADER_SIZE, b"\0"))
    damaged[position] ^= change
    assert decode_header(bytes(damaged)) != HEADER


@given(st.binary(max_size=HEADER_SIZE + 10))
def test_any_bytes_decode_to_no_header(data: bytes) -> None:
    assert decode_header(data) is None


def test_marks_are_shared_by_all_who_map_the_file(tmp_path: Path) -> None:
    path = tmp_path / "map"
    create_map(path, HEADER)
    first, second = open_map(path, HEADER), open_map(path, HEADER)
    assert first is not None
    assert second is not None
    first.mark(3)
    first.mark(5, 2)
    assert path.read_bytes()[4096:4106] == bytes([0, 0, 0, 1, 0, 1, 1, 0, 0, 0])
    assert [second.is_ready(chunk) for chunk in range(10)] == [
        chunk in (3, 5, 6) for chunk in range(10)
    ]
    assert second.ready_count == 3
    assert second.first_missing(3, 4) == -1
    assert second.first_missing(3, 10) == 4
    assert second.first_missing(5, 7) == -1
    assert not second.complete
    first.close()
    second.close()
    second.close()


@pytest.mark.parametrize(
    "change",
    [
        {"chunk_count": 11},
        {"size_bytes": 4096},
        {"inode": 78},
        {"inode_generation": 1},
        {"identity": b"j" * 32},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_map_of_something_else_is_not_believed(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "map"
    create_map(path, HEADER)
    assert open_map(path, HEADER._replace(**change)) is None


def test_a_truncated_map_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "map"
    create_map(path, HEADER)
    os.truncate(path, HEADER_SIZE + 9)
    assert open_map(path, HEADER) is None


def test_there_may_be_no_map(tmp_path: Path) -> None:
    assert open_map(tmp_path / "map", HEADER) is None


def test_only_a_clean_and_complete_map_outlives_a_boot(tmp_path: Path) -> None:
    path = tmp_path / "map"
    boots = [HEADER._replace(boot_id=bytes([number]) * 16) for number in range(4)]
    create_map(path, boots[0])
    found = open_map(path, boots[0])
    assert found is not None
    found.mark(0, 9)
    found.set_clean()
    found.close()

    found = open_map(path, boots[1])
    assert found is not None
    assert found.ready_count == 0, "clean but not complete"
    assert unverified(found) == 9
    assert not found.clean
    found.mark(0, 10)
    assert unverified(found) == 0
    found.close()

    found = open_map(path, boots[2])
    assert found is not None
    assert found.ready_count == 0, "complete but not clean"
    assert unverified(found) == 10
    found.mark(0, 10)
    found.set_clean()
    found.close()

    found = open_map(path, boots[3])
    assert found is not None
    assert found.complete
    assert found.clean
    found.close()


def test_doubts_last_until_they_are_settled(tmp_path: Path) -> None:
    path = tmp_path / "map"
    boots = [HEADER._replace(boot_id=bytes([number]) * 16) for number in range(4)]
    create_map(path, boots[0])
    for number, boot in enumerate(boots):
        found = open_map(path, boot)
        assert found is not None
        assert [chunk for chunk in range(10) if found.is_unverified(chunk)] == [1, 5, 8][:number]
        found.mark([1, 5, 8, 9][number])
        found.close()
    found = open_map(path, boots[-1])
    assert found is not None
    found.clear_unverified(5)
    assert not found.is_unverified(5)
    assert not found.is_ready(5)
    found.close()


ZONES = ((0, 0), (3, 12288), (7, 28672))


def zoned(path: Path) -> ReadinessMap:
    create_map(path, HEADER, ZONES)
    found = open_map(path, HEADER)
    assert found is not None
    return found


def test_zones_have_their_chunks_and_bytes(tmp_path: Path) -> None:
    found = zoned(tmp_path / "map")
    assert [(zone.first, zone.stop, zone.offset, zone.end) for zone in found.zones()] == [
        (0, 3, 0, 12288),
        (3, 7, 12288, 28672),
        (7, 10, 28672, 40960),
    ]
    found.close()


@pytest.mark.parametrize(
    ("offset", "size", "touched"),
    [
        (0, 1, [0]),
        (12287, 1, [0]),
        (12287, 2, [0, 1]),
        (12288, 1, [1]),
        (20000, 20960, [1, 2]),
        (0, 40960, [0, 1, 2]),
    ],
)
def test_uses_are_kept_by_zone(tmp_path: Path, offset: int, size: int, touched: list[int]) -> None:
    found = zoned(tmp_path / "map")
    found.touch(offset, size, 77)
    assert [zone.number for zone in found.zones() if zone.last_use == 77] == touched
    found.close()


def test_forgetting_a_zone(tmp_path: Path) -> None:
    found = zoned(tmp_path / "map")
    found.mark(0, 10)
    found.set_clean()
    assert not found.complete or found.clean
    generation = found.generation
    found.forget(found.zone(1))
    assert [found.is_ready(chunk) for chunk in range(10)] == [True] * 3 + [False] * 4 + [True] * 3
    assert found.generation == generation + 1
    assert not found.clean, "the next boot must not trust the hole"
    assert not found.holds_something(found.zone(1))
    assert found.holds_something(found.zone(2))
    found.close()


def test_a_new_map_does_not_disturb_who_has_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "map"
    create_map(path, HEADER)
    old = open_map(path, HEADER)
    assert old is not None
    create_map(path, HEADER)
    new = open_map(path, HEADER)
    assert new is not None
    old.mark(1)
    assert not new.is_ready(1)
    old.close()
    new.close()


def test_the_boot_id_is_the_kernels() -> None:
    text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    assert readiness.current_boot_id().hex() == text.strip().replace("-", "")


def test_the_map_is_written_in_full(tmp_path: Path) -> None:
    # A hole would be a SIGBUS for whoever marks a chunk on a full disk.
    path = tmp_path / "map"
    create_map(path, HEADER._replace(chunk_count=1 << 20))
    assert path.stat().st_blocks * 512 >= 1 << 20
