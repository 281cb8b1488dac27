"""Peer tools (nydusd, nydus-image, ...) as ``make peers`` leaves them; never part of the
project.
"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

from tests.support.cache import cache_folder, exclusive

ARCHIVES = Path(__file__).resolve().parents[3] / "shared" / "peers"


def find_peer(name: str) -> Path | None:
    """Path of a peer program, or None.  Binaries in ``../shared/peers`` are unpacked at first
    use.
    """
    folder = cache_folder("peers")
    path = folder / name
    if not path.exists() and ARCHIVES.is_dir():
        with exclusive(folder / ".lock"):
            _unpack(name, path)
    return path if os.access(path, os.X_OK) else None


def _unpack(name: str, path: Path) -> None:
    for archive in sorted(ARCHIVES.glob("*.tar.xz")):
        with tarfile.open(archive) as tar:
            for member in tar:
                source = tar.extractfile(member) if Path(member.name).name == name else None
                if source is not None and not path.exists():
                    staging = path.with_name(f".{name}.new")
                    staging.write_bytes(source.read())
                    staging.chmod(0o755)
                    staging.rename(path)
