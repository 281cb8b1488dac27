"""A real two-layer OCI image from Debian packages, made without root, docker or a container.

``apt-get`` resolves and downloads the packages into a folder of its own; ``dpkg-deb`` and ``tar``
unpack them.  The first layer is a small base system, the second is what the wanted packages add to
it.

As a program, ``python3 demo/image.py FOLDER PACKAGE...`` writes the image as an OCI layout into a
new folder.  Needs Debian's ``apt-get`` and ``dpkg-deb``, and about 30 s.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing_extensions import Buffer

MIRROR = os.environ.get("LAMINA_MIRROR", "http://deb.debian.org/debian")
SUITE = "bookworm"
BASE = (
    "base-files",
    "bash",
    "coreutils",
    "dash",
    "libc-bin",
    "grep",
    "sed",
    "ncurses-base",
    "tzdata",
)
MERGED_USR = ("bin", "lib", "lib64", "sbin")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
EPOCH = 1_700_000_000
"""Modification time of everything that no package dates."""
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Layer(NamedTuple):
    """One compressed layer: descriptor fields and the digest of the plain tar."""

    digest: str
    size_bytes: int
    diff_id: str


def build_image(layout: Path, packages: Sequence[str], work: Path) -> list[Layer]:
    """Write an OCI layout with the tag ``latest``; return its layers.  ``work`` takes the
    downloads.
    """
    apt = _Apt(work / "apt")
    apt.update()
    base = apt.download(BASE)
    added = [deb for deb in apt.download((*BASE, *packages)) if deb not in base]
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    roots = [work / "base", work / "added"]
    for debs, root in zip((base, added), roots, strict=True):
        _unpack(debs, root, with_base=root is roots[0])
    with ThreadPoolExecutor(len(roots)) as pool:
        layers = list(pool.map(lambda root: _write_layer(root, blobs), roots))
    _write_manifest(layout, layers)
    return layers


class _Apt:
    """apt with its own lists, cache and an empty package database: nothing counts as installed."""

    def __init__(self, folder: Path) -> None:
        for each in ("lists/partial", "archives/partial"):
            (folder / each).mkdir(parents=True)
        (folder / "status").touch()
        (folder / "sources.list").write_text(f"deb {MIRROR} {SUITE} main\n")
        self._archives = folder / "archives"
        options = {
            "Dir::State": folder,
            "Dir::State::status": folder / "status",
            "Dir::State::lists": folder / "lists",
            "Dir::Cache": folder,
            "Dir::Cache::archives": self._archives,
            "Dir::Etc::sourcelist": folder / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
        }
        self._options = [
            word for key, value in options.items() for word in ("-o", f"{key}={value}")
        ]

    def update(self) -> None:
        """Fetch the package lists of the suite."""
        _run("apt-get", *self._options, "-q", "update")

    def download(self, packages: Iterable[str]) -> list[Path]:
        """Download packages and all that they depend on; return the files of this and earlier
        calls.
        """
        _run("apt-get", *self._options, "-q", "-y", "--download-only", "install", *packages)
        return sorted(self._archives.glob("*.deb"))


def _unpack(debs: Sequence[Path], root: Path, *, with_base: bool) -> None:
    root.mkdir()
    for name in MERGED_USR:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for deb in debs:
        with subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE
        ) as source:
            _run("tar", "-x", "--keep-directory-symlink", "-C", str(root), stdin=source.stdout)
    if with_base:
        (root / "etc").mkdir(exist_ok=True)
        (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
        (root / "etc/group").write_text("root:x:0:\n")
        (root / "tmp").mkdir(exist_ok=True)
        (root / "tmp").chmod(0o1777)


def _write_layer(root: Path, blobs: Path) -> Layer:
    """Pack a folder reproducibly: sorted names, owner root, no time of this run."""
    staging = blobs / f"{root.name}.new"
    plain = hashlib.sha256()
    with ExitStack() as stack:
        file = stack.enter_context(staging.open("wb"))
        compressed = stack.enter_context(gzip.GzipFile("", "wb", 6, file, mtime=0))
        sink = _HashingWriter(compressed, plain)
        tar = stack.enter_context(tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT))
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            tar.add(path, name, recursive=False, filter=_owned_by_root)
    with staging.open("rb") as packed:
        digest = hashlib.file_digest(packed, "sha256").hexdigest()
    size_bytes = staging.stat().st_size
    staging.rename(blobs / digest)
    return Layer(f"sha256:{digest}", size_bytes, f"sha256:{plain.hexdigest()}")


class _HashingWriter(io.RawIOBase):
    """A file that also feeds a hash."""

    def __init__(self, file: gzip.GzipFile, digest: hashlib._Hash) -> None:
        super().__init__()
        self._file = file
        self._digest = digest

    def write(self, data: Buffer, /) -> int:
        self._digest.update(data)
        return self._file.write(data)


def _owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    entry.mtime = min(int(entry.mtime), EPOCH)
    return entry


def _write_manifest(layout: Path, layers: Sequence[Layer]) -> None:
    machine = platform.machine()
    config = {
        "architecture": ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "config": {"Env": [f"PATH={PATH}"], "Cmd": ["/bin/bash"]},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
    }
    media = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{media}.manifest.v1+json",
        "config": _put(layout, f"{media}.config.v1+json", config),
        "layers": [
            {
                "mediaType": f"{media}.layer.v1.tar+gzip",
                "digest": layer.digest,
                "size": layer.size_bytes,
            }
            for layer in layers
        ],
    }
    descriptor = _put(layout, f"{media}.manifest.v1+json", manifest)
    descriptor["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def _put(layout: Path, media_type: str, value: object) -> dict[str, object]:
    data = json.dumps(value).encode()
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _run(*command: str, stdin: IO[bytes] | int | None = subprocess.DEVNULL) -> str:
    done = subprocess.run(
        command,
        stdin=stdin,
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def main() -> int:
    """Build the image that the command line names; return the exit status."""
    if len(sys.argv) < 3:
        print("usage: image.py FOLDER PACKAGE...", file=sys.stderr)
        return 2
    layout, packages = Path(sys.argv[1]).absolute(), sys.argv[2:]
    absent = [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]
    if absent or layout.exists():
        problem = (
            f"{layout} exists already" if not absent else f"not installed: {', '.join(absent)}"
        )
        print(f"image.py: {problem}", file=sys.stderr)
        return 1
    print(f"making {layout} from Debian packages: {', '.join(packages)}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="image-", dir=layout.parent) as work:
        layers = build_image(Path(work) / "image", packages, Path(work))
        (Path(work) / "image").rename(layout)
    print(f"layers of {' and '.join(f'{each.size_bytes / 1e6:.0f} MB' for each in layers)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
