"""dm-verity and fs-verity against veritysetup and fsverity, byte for byte."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import pytest

from lamina.block.verity import VerityOptions, dm_verity, fs_verity, superblock
from tests.support import tools
from tests.unit.block.test_verity import COUNTS, SALTS, SIZES, options, pattern

pytestmark = pytest.mark.tools
UUID = bytes(range(16))


def run_veritysetup(
    folder: Path, data: bytes, wanted: VerityOptions, *, with_superblock: bool, same_file: bool
) -> tuple[bytes, bytes]:
    """Root digest and the bytes of the hash area."""
    (program,) = tools.require_tool("veritysetup")
    file, tree = folder / "data", folder / "hash"
    file.write_bytes(data)
    tree.write_bytes(b"")
    command = [program, "format", str(file), str(file if same_file else tree)]
    command += [f"--data-block-size={wanted.data_block_bytes}", "--hash=" + wanted.algorithm]
    command += [f"--hash-block-size={wanted.hash_block_bytes}", f"--format={wanted.version}"]
    command += [f"--salt={wanted.salt.hex() or '-'}"]
    command += [f"--data-blocks={len(data) // wanted.data_block_bytes}"]
    if with_superblock:
        command.append("--uuid=00010203-0405-0607-0809-0a0b0c0d0e0f")
    else:
        command.append("--no-superblock")
    if same_file:
        command.append(f"--hash-offset={len(data)}")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("Root hash")]
    area = file.read_bytes()[len(data) :] if same_file else tree.read_bytes()
    return bytes.fromhex(line.split()[-1]), area


@pytest.mark.parametrize("with_superblock", [True, False], ids=["superblock", "bare"])
@pytest.mark.parametrize("size", [512, 1024, 4096])
@pytest.mark.parametrize("count", COUNTS)
def test_veritysetup_agrees(count: int, size: int, with_superblock: bool, tmp_path: Path) -> None:
    data = pattern(count * size)
    for number, salt_bytes in enumerate(SALTS):
        wanted = options(size, salt_bytes, version=0 if number == 1 else 1)
        found = dm_verity(io.BytesIO(data), wanted)
        same_file = bool(number) or count == 1
        root, area = run_veritysetup(
            tmp_path, data, wanted, with_superblock=with_superblock, same_file=same_file
        )
        head = superblock(wanted, count, UUID) if with_superblock else b""
        assert found.root == root
        assert area[: len(head) + len(found.tree)] == head + found.tree


@pytest.mark.parametrize("size", SIZES)
def test_fsverity_agrees(size: int, tmp_path: Path) -> None:
    (program,) = tools.require_tool("fsverity")
    file = tmp_path / "file"
    file.write_bytes(pattern(size))
    for algorithm, block, salt_bytes in (
        ("sha256", 4096, 0), ("sha256", 4096, 32), ("sha512", 4096, 7), ("sha256", 1024, 0),
    ):  # fmt: skip
        command = [program, "digest", "--compact", f"--hash-alg={algorithm}"]
        command += [f"--block-size={block}", str(file)]
        if salt_bytes:
            command.append(f"--salt={bytes(range(salt_bytes)).hex()}")
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        with file.open("rb") as opened:
            found = fs_verity(opened, algorithm, block, bytes(range(salt_bytes)))
        assert found.hex() == done.stdout.strip()
