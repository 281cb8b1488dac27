"""Faults of a node store that nobody uses at the moment: forged maps, old and damaged cache files.

What the store promises, and what therefore is *not* done here: a map of this boot is believed, so
its data is not touched behind its back; and so is a complete map that says it was flushed to disk.
Everything else must be found out.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from lamina.store import readiness
from tests.faults.sample import Sample

LocalFault = Callable[[Path, random.Random], bool]
"""Does its damage to a store and returns True, or False if there is nothing to damage."""


def data_files(store: Path) -> list[Path]:
    """The cache files."""
    return sorted(path for path in store.glob("blobs/*.data") if not path.name.startswith("."))


def _chosen(store: Path, chance: random.Random) -> tuple[Path, Path] | None:
    """A cache file and its map."""
    files = [path for path in data_files(store) if path.with_suffix(".ready").exists()]
    if not files:
        return None
    data = chance.choice(files)
    return data, data.with_suffix(".ready")


def _write_map(path: Path, change: Callable[[bytearray, readiness.Header], None]) -> bool:
    """Change a map where it is; False if it is none."""
    content = bytearray(path.read_bytes())
    header = readiness.decode_header(bytes(content))
    if header is None:
        return False
    change(content, header)
    # Not replaced: the inode numbers of maps do not matter, but this is what a forger would do.
    path.write_bytes(content)
    return True


def _of_another_boot(content: bytearray, header: readiness.Header) -> None:
    encoded = readiness.encode_header(header._replace(boot_id=os.urandom(16)))
    content[: len(encoded)] = encoded
    readiness.CLEAN_FIELD.pack_into(content, readiness.CLEAN_OFFSET, 0)


def forge_all_ready(store: Path, chance: random.Random) -> bool:
    """Marks for everything, from another boot: most of it is not there."""
    found = _chosen(store, chance)

    def change(content: bytearray, header: readiness.Header) -> None:
        _of_another_boot(content, header)
        start = readiness.HEADER_SIZE
        content[start : start + header.chunk_count] = b"\1" * header.chunk_count

    return found is not None and _write_map(found[1], change)


def forge_doubts(store: Path, chance: random.Random) -> bool:
    """Doubts of this boot about everything."""
    found = _chosen(store, chance)

    def change(content: bytearray, header: readiness.Header) -> None:
        start, count = readiness.HEADER_SIZE, header.chunk_count
        content[start : start + 2 * count] = bytes(count) + b"\1" * count

    return found is not None and _write_map(found[1], change)


def damage_data(store: Path, chance: random.Random) -> bool:
    """Bytes changed in a cache file, with a map of another boot that is not clean."""
    found = _chosen(store, chance)
    if found is None or not _write_map(found[1], _of_another_boot):
        return False
    with found[0].open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        for _ in range(chance.randrange(1, 40)):
            file.seek(chance.randrange(max(size - 64, 1)))
            file.write(chance.randbytes(chance.randrange(1, 64)) if size > 64 else b"")
    return True


def damage_map(store: Path, chance: random.Random) -> bool:
    """A map that is cut off, or has a byte of its header changed."""
    found = _chosen(store, chance)
    if found is None:
        return False
    size = found[1].stat().st_size
    if chance.random() < 0.5:
        os.truncate(found[1], chance.randrange(size))
        return True
    with found[1].open("r+b") as file:
        file.seek(chance.randrange(readiness.CLEAN_OFFSET))
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1 << chance.randrange(8)]))
    return True


def exchange_maps(store: Path, chance: random.Random) -> bool:
    """Two blobs get each other's maps."""
    return _exchange(store, chance, ".ready")


def exchange_data(store: Path, chance: random.Random) -> bool:
    """Two blobs get each other's cache files."""
    return _exchange(store, chance, ".data")


def _exchange(store: Path, chance: random.Random, ending: str) -> bool:
    files = data_files(store)
    if len(files) < 2:
        return False
    one, other = (path.with_suffix(ending) for path in chance.sample(files, 2))
    aside = store / "aside"
    if not one.exists() or not other.exists():
        return False
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    return True


def replay_older_data(store: Path, chance: random.Random) -> bool:
    """An older copy of the cache file in which less is there, restored from a backup.

    A file system gives the new file the inode number of the old one, if that has just become free.
    """
    found = _chosen(store, chance)
    if found is None:
        return False
    size = found[0].stat().st_size
    found[0].unlink()
    with found[0].open("wb") as file:
        file.truncate(size)
    found[0].chmod(0o600)
    return True


def replay_other_blob(store: Path, chance: random.Random) -> bool:
    """The cache file of another blob, with its map, in place of the one that belongs there."""
    files = data_files(store)
    if len(files) < 2:
        return False
    source, target = chance.sample(files, 2)
    for ending in (".data", ".ready"):
        if not source.with_suffix(ending).exists():
            return False
        shutil.copyfile(source.with_suffix(ending), target.with_suffix(ending))
    return True


def damage_index(store: Path, chance: random.Random) -> bool:
    """The index of chunks says that they are where they are not."""
    path = store / "index" / "chunks"
    if not path.exists():
        return False
    content = bytearray(path.read_bytes())
    for slot in range(64, len(content) - 16, 16):
        if any(content[slot : slot + 8]):
            content[slot + 12] ^= 1 + chance.randrange(7)
    path.write_bytes(content)
    return True


def damage_metadata(store: Path, sample: Sample) -> bool:
    """A byte of the manifest that is kept."""
    return _damage_kept(store, sample.digest)


def damage_start(store: Path, sample: Sample) -> bool:
    """A byte of the start artifact that is kept."""
    return _damage_kept(store, sample.start_digest)


def _damage_kept(store: Path, digest: str) -> bool:
    path = store / "metadata" / "sha256" / digest.removeprefix("sha256:")
    if not path.exists():
        return False
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return True


FAULTS: dict[str, LocalFault] = {
    "forged map: all ready": forge_all_ready,
    "forged map: doubts": forge_doubts,
    "damaged cache file": damage_data,
    "damaged map": damage_map,
    "maps exchanged": exchange_maps,
    "cache files exchanged": exchange_data,
    "older cache file": replay_older_data,
    "cache of another blob": replay_other_blob,
    "damaged chunk index": damage_index,
}
