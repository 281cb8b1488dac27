"""A disk whose content is encrypted as dm-crypt has it: aes-xts-plain64, in sectors of 4096 bytes.

What it gives is secrecy of a disk that is at rest; nothing notices what is changed in it, so put
the hash tree inside.  The number that a sector is encrypted with is that of its first 512 bytes,
as dm-crypt counts without ``iv_large_sectors`` (Linux, ``drivers/md/dm-crypt.c``).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lamina.block.base import BytesDisk, Disk, JoinedDisk, Segment
from lamina.errors import Error, UnsupportedError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import CipherContext

KEY_BYTES: Final = 64
"""Two keys of AES-256."""

SECTOR_BYTES: Final = 4096
LUKS_HEADER_BYTES: Final = 16 << 20
"""What cryptsetup takes for a header by itself."""

_COUNTED_BYTES: Final = 512


class EncryptedDisk:
    """Another disk, encrypted as it is read.  Nothing of it is a hole."""

    def __init__(self, disk: Disk, key: bytes) -> None:
        """*disk* is of whole sectors.  Raises UsageError for a key of another length."""
        if len(key) != KEY_BYTES or key[: KEY_BYTES // 2] == key[KEY_BYTES // 2 :]:
            raise UsageError(
                f"the key of aes-xts-plain64 is {KEY_BYTES} bytes whose halves differ",
                hint="head -c 64 /dev/urandom makes one",
            )
        self._disk = disk
        self._encryptor = _encryptors(key)
        self.size_bytes: Final = disk.size_bytes

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """Fill *buffer* from *offset* on; returns the count, less only at the end of the disk."""
        view = memoryview(buffer).cast("B")
        size = min(len(view), self.size_bytes - offset)
        first = offset // SECTOR_BYTES * SECTOR_BYTES
        stop = -(-(offset + size) // SECTOR_BYTES) * SECTOR_BYTES
        plain = memoryview(bytearray(stop - first))
        if self._disk.read_into(first, plain) != len(plain):
            return 0
        for at in range(0, len(plain), SECTOR_BYTES):
            number = (first + at) // _COUNTED_BYTES
            sector = plain[at : at + SECTOR_BYTES]
            sector[:] = self._encryptor(number).update(sector)
        view[:size] = plain[offset - first : offset - first + size]
        return size

    def read_ready(self, offset: int, view: memoryview) -> bool:
        """Fill *view* if all of that range is here now."""
        if not self._disk.is_ready(offset, len(view)):
            return False
        return self.read_into(offset, view) == len(view)

    def segments(self, offset: int, size_bytes: int) -> Iterator[Segment]:
        """Yield the range, which is data."""
        size = min(size_bytes, self.size_bytes - offset)
        if size > 0:
            yield Segment(offset, size, is_hole=False)

    def is_ready(self, offset: int, size_bytes: int) -> bool:
        """Return whether the range can be read now without fetching."""
        return self._disk.is_ready(offset, size_bytes)

    def is_hole(self, _offset: int, _size_bytes: int) -> bool:
        """Return False."""
        return False


def _encryptors(key: bytes) -> Callable[[int], CipherContext]:
    """Return what encrypts the sector of a number."""
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher
        from cryptography.hazmat.primitives.ciphers.algorithms import AES
        from cryptography.hazmat.primitives.ciphers.modes import XTS
    except ImportError as error:
        raise UnsupportedError(
            "disks are encrypted by the package cryptography, which is not installed",
            hint="pip install 'lamina[ocicrypt]'",
        ) from error
    algorithm = AES(key)
    return lambda number: Cipher(algorithm, XTS(number.to_bytes(16, "little"))).encryptor()


def crypt_table(size_bytes: int, device: str, key: str = "KEY") -> str:
    """Return the line for ``dmsetup create --readonly``; *key* is in hexadecimal, if it is said."""
    sectors = size_bytes // _COUNTED_BYTES
    return f"0 {sectors} crypt aes-xts-plain64 {key} 0 {device} 0 1 sector_size:{SECTOR_BYTES}"


def luks_disk(disk: Disk, passphrase_file: Path) -> JoinedDisk:
    """Return *disk* encrypted with a key of its own, behind a LUKS2 header that has that key for
    whoever has the passphrase.  Each call makes another key.

    Raises UnsupportedError without cryptsetup, Error with what it says.
    """
    key = os.urandom(KEY_BYTES)
    header = _luks_header(key, passphrase_file)
    return JoinedDisk(
        [(0, BytesDisk(header)), (LUKS_HEADER_BYTES, EncryptedDisk(disk, key))],
        LUKS_HEADER_BYTES + disk.size_bytes,
    )


def _luks_header(key: bytes, passphrase_file: Path) -> bytes:
    program = shutil.which("cryptsetup", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise UnsupportedError(
            "the header of LUKS2 is made by cryptsetup, which is not installed",
            hint="install cryptsetup-bin, or use --encrypt dm-crypt",
        )
    # The key is in no file, but in memory that cryptsetup opens as one.
    with (
        tempfile.TemporaryDirectory(prefix="lamina-luks-") as folder,
        open(os.memfd_create("lamina-luks-key"), "wb", buffering=0) as memory,
    ):
        memory.write(key)
        header = Path(folder) / "header"
        with header.open("wb") as file:
            file.truncate(LUKS_HEADER_BYTES + SECTOR_BYTES)
        command = [program, "luksFormat", "--batch-mode", "--type", "luks2"]
        command += ["--cipher", "aes-xts-plain64", "--key-size", str(8 * KEY_BYTES)]
        command += ["--sector-size", str(SECTOR_BYTES)]
        command += ["--offset", str(LUKS_HEADER_BYTES // _COUNTED_BYTES)]
        command += ["--volume-key-file", f"/proc/self/fd/{memory.fileno()}"]
        command += ["--key-file", str(passphrase_file), str(header)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, pass_fds=[memory.fileno()]
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise Error(f"cryptsetup luksFormat failed: {said[-1] if said else done.returncode}")
        return header.read_bytes()[:LUKS_HEADER_BYTES]
