"""Images of the writer in the hands of Linux, erofs-utils and Nydus; and those of Nydus in ours."""

from __future__ import annotations

import contextlib
import json
import os
import random
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamina.blob.decode import decode_piece
from lamina.blob.framing import read_bootstrap
from lamina.blob.table import ChunkTable
from lamina.codec.compress import Compressor
from lamina.codec.digest import Digester
from lamina.erofs.check import check_bootstrap
from lamina.erofs.layout import BLOCK_SIZE, ChunkIndex, Inode
from lamina.erofs.reader import Bootstrap
from lamina.erofs.tree import Node
from lamina.linux.mount import attach_mount, create_mount, unmount
from tests.support import tools
from tests.support.blob_check import check_blob
from tests.support.rafs import Content, Image, directory, make_image

XATTRS = {
    b"user.note": b"a note",
    b"trusted.t": b"\0\1\2",
    b"security.capability": bytes.fromhex("0100000202000000000000000000000000000000"),
    b"system.posix_acl_access": bytes.fromhex(
        "0200000001000600ffffffff02000400e803000004000400ffffffff"
        "10000400ffffffff20000400ffffffff"
    ),
}  # fmt: skip


def everything() -> dict[bytes, Content]:
    """Every kind of inode, at every size that matters."""
    generator = random.Random(11)
    fields = {"uid": 70_000, "gid": 80_000, "mtime": 1_600_000_000, "mtime_ns": 123_456_789}
    hard = Node(0o104755, **fields)  # type: ignore[arg-type]
    entries: dict[bytes, Content] = {
        b"empty": b"",
        b"one": b"1",
        b"block": bytes(range(256)) * 16,
        b"chunks": generator.randbytes(5 * 65536 + 77),
        b"text/long": b"line after line\n" * 30_000,
        b"#sorts-before-dot": b"odd",
        b"hard/a": hard,
        b"hard/b": hard,
        b"sticky": directory(0o1777, **fields),
        b"acl": Node(0o100664, xattrs=XATTRS),
        b"acl-dir": directory(xattrs={b"trusted.overlay.opaque": b"y"}),
        b"null": Node(stat.S_IFCHR | 0o666, rdev=1 << 8 | 3),
        b"disk": Node(stat.S_IFBLK | 0o660, rdev=0x12345_00 & 0xFFF00000 | 259 << 8 | 7),
        b"pipe": Node(stat.S_IFIFO | 0o600),
        b"socket": Node(stat.S_IFSOCK | 0o755),
        b"early": Node(0o100644, mtime=-5),
    }
    entries |= {
        b"links/%04d" % size: Node(0o120777, target=b"t" * size)
        for size in (1, 60, 4000, 4031, 4032, 4033, 4095)
    }
    entries |= {b"many/%03d-%s" % (number, b"n" * (number % 80)): b"" for number in range(700)}
    entries |= {b"small/%03d" % n: generator.randbytes(n * 31) for n in range(120)}
    return entries


@pytest.fixture(scope="module")
def image() -> Image:
    return make_image(everything(), chunk_size=65536, pack_size=32768, inlined_digests=True)


@contextlib.contextmanager
def mounted(folder: Path, image: Image, *, flat: bool) -> Iterator[Path]:
    """The image as Linux sees it: with the blob as a device, or as one flat disk."""
    source, device, mountpoint = folder / "image.boot", folder / "blob", folder / "mnt"
    source.write_bytes(image.bootstrap)
    device.write_bytes(image.device)
    options: list[tuple[str, str | None]] = [("ro", None)]
    if flat:
        (slot,) = Bootstrap(image.bootstrap).header.devices
        with source.open("r+b") as disk:
            disk.seek(slot.mapped_block * BLOCK_SIZE)
            disk.write(image.device)
    else:
        options.append(("device", str(device)))
    mountpoint.mkdir()
    mount = create_mount("erofs", str(source), options)
    try:
        attach_mount(mount, str(mountpoint))
    finally:
        os.close(mount)
    try:
        yield mountpoint
    finally:
        unmount(str(mountpoint))


def assert_same(
    path: bytes, node: Node, inode: Inode, content: bytes | None, *, nydusd: bool = False
) -> None:
    """Compare a file as the kernel, or nydusd, shows it with its node."""
    found = os.lstat(path)
    expected = (node.mode, node.uid, node.gid, inode.nlink)
    assert (found.st_mode, found.st_uid, found.st_gid, found.st_nlink) == expected
    # nydusd adds the number of the mount to inode numbers, and shows the time 0 as now.
    assert found.st_ino & (1 << 56) - 1 == inode.nid
    if not nydusd or node.mtime > 0:
        assert found.st_mtime_ns == node.mtime * 10**9 + node.mtime_ns
    names = {os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False)}
    assert {name: os.getxattr(path, name, follow_symlinks=False) for name in names} == node.xattrs
    kind = stat.S_IFMT(node.mode)
    if kind == stat.S_IFLNK:
        assert os.readlink(path) == node.target
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        device = os.major(found.st_rdev) << 8 | os.minor(found.st_rdev) & 0xFF
        assert device | (os.minor(found.st_rdev) & ~0xFF) << 12 == node.rdev
    elif kind == stat.S_IFREG:
        assert Path(os.fsdecode(path)).read_bytes() == (content or b"")


@pytest.mark.kernel
@pytest.mark.parametrize("flat", [False, True], ids=["devices", "flat"])
def test_linux_sees_what_was_written(image: Image, tmp_path: Path, flat: bool) -> None:
    tools.require_root()
    tools.require_erofs()
    tools.require_kernel(6, 12, "mounting EROFS from a file")
    contents = {path: data for path, data in everything().items() if isinstance(data, bytes)}
    bootstrap = Bootstrap(image.bootstrap)
    with mounted(tmp_path, image, flat=flat) as root:
        seen = {b""}
        for folder, folders, files in os.walk(os.fsencode(root)):
            below = os.path.relpath(folder, os.fsencode(root))
            for name in folders + files:
                seen.add(os.path.normpath(os.path.join(below, name)))
        nodes = dict(image.root.walk())
        assert seen == nodes.keys()
        for path, node in nodes.items():
            inode = resolve(bootstrap, path)
            assert_same(os.path.join(os.fsencode(root), path), node, inode, contents.get(path))


def resolve(bootstrap: Bootstrap, path: bytes) -> Inode:
    inode = bootstrap.inode(bootstrap.root_nid)
    for name in filter(None, path.split(b"/")):
        nid = bootstrap.lookup(inode, name)
        assert nid is not None
        inode = bootstrap.inode(nid)
    return inode


@pytest.mark.kernel
def test_both_readings_of_the_chunk_format_agree(tmp_path: Path) -> None:
    """A file of consecutive chunks is one chunk to Linux and many to RAFS: the same bytes."""
    tools.require_root()
    tools.require_erofs()
    tools.require_kernel(6, 12, "mounting EROFS from a file")
    content = random.Random(5).randbytes(9 * 4096 + 1)
    image = make_image({b"before": b"x", b"f": content, b"after": b"y"}, chunk_size=4096)
    bootstrap = Bootstrap(image.bootstrap)
    inode = resolve(bootstrap, b"f")
    assert inode.raw == 0x20 | 4
    by_index = b"".join(
        image.device[chunk.block_address * 4096 :][:4096] for chunk in bootstrap.chunks(inode)
    )
    assert by_index[: inode.size] == content
    with mounted(tmp_path, image, flat=False) as root:
        assert (root / "f").read_bytes() == content


@pytest.mark.tools
def test_fsck_erofs_accepts_and_extracts(image: Image, tmp_path: Path) -> None:
    (fsck,) = tools.require_tool("fsck.erofs")
    tools.require_root()
    source, device, target = tmp_path / "image.boot", tmp_path / "blob", tmp_path / "out"
    source.write_bytes(image.bootstrap)
    device.write_bytes(image.device)
    command = [fsck, f"--device={device}", f"--extract={target}", "--preserve", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for path, content in everything().items():
        if isinstance(content, bytes):
            assert (target / os.fsdecode(path)).read_bytes() == content
        elif stat.S_ISLNK(content.mode):
            assert os.fsencode(os.readlink(target / os.fsdecode(path))) == content.target


@contextlib.contextmanager
def served(nydusd: Path, folder: Path, image: Image) -> Iterator[Path]:
    """The image as nydusd serves it by FUSE."""
    mountpoint, configuration, boot = folder / "mnt", folder / "config", folder / "image.boot"
    blobs, cache = folder / "blobs", folder / "cache"
    for path in (mountpoint, cache):
        path.mkdir()
    device = {
        "backend": {"type": "localfs", "config": {"dir": str(blobs)}},
        "cache": {"type": "blobcache", "config": {"work_dir": str(cache)}},
    }
    options = {"device": device, "mode": "direct", "digest_validate": False, "enable_xattr": True}
    configuration.write_text(json.dumps(options))
    boot.write_bytes(image.bootstrap)
    command = [
        nydusd, "--rlimit-nofile", "0", "--log-level", "error", "--config", configuration,
        "--bootstrap", boot, "--mountpoint", mountpoint, "--apisock", folder / "api",
    ]  # fmt: skip
    with subprocess.Popen(command) as process:
        try:
            deadline_s = time.monotonic() + 60
            while not mountpoint.is_mount():
                assert process.poll() is None, f"nydusd ended with {process.returncode}"
                assert time.monotonic() < deadline_s, "nydusd does not mount"
                time.sleep(0.05)
            yield mountpoint
        finally:
            if mountpoint.is_mount():
                unmount(str(mountpoint))
            process.terminate()


@pytest.mark.tools
@pytest.mark.parametrize("compressor", [Compressor.NONE, Compressor.LZ4_BLOCK, Compressor.ZSTD])
@pytest.mark.parametrize("pack_size", [0, 32768])
def test_nydus_reads_ours(
    peer: Callable[[str], Path], tmp_path: Path, compressor: Compressor, pack_size: int
) -> None:
    tools.require_root()
    nydus_image, nydusd = peer("nydus-image"), peer("nydusd")
    image = make_image(
        everything(),
        chunk_size=65536,
        pack_size=pack_size,
        compressor=compressor,
        digester=Digester.SHA256 if pack_size else Digester.BLAKE3,
        inlined_digests=pack_size > 0,
        prefetch=[b"/"],
    )
    assert image.entry is not None
    boot, blobs = tmp_path / "image.boot", tmp_path / "blobs"
    boot.write_bytes(image.bootstrap)
    blobs.mkdir()
    (blobs / image.entry.blob_id).write_bytes(image.blob)
    command = [nydus_image, "check", "--blob-dir", blobs, boot]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    contents = {path: data for path, data in everything().items() if isinstance(data, bytes)}
    bootstrap = Bootstrap(image.bootstrap)
    with served(nydusd, tmp_path, image) as root:
        for path, node in image.root.walk():
            inode = resolve(bootstrap, path)
            place = os.path.join(os.fsencode(root), path)
            assert_same(place, node, inode, contents.get(path), nydusd=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to build from."""
    root = tmp_path_factory.mktemp("source")
    generator = random.Random(2)
    (root / "a").mkdir()
    (root / "a" / "big").write_bytes(generator.randbytes(300_000) * 4)
    (root / "a" / "text").write_bytes(b"hello world\n" * 5000)
    os.link(root / "a" / "text", root / "a" / "hard")
    (root / "many").mkdir()
    for number in range(300):
        content = b"%d " % number * (number * 7)
        (root / "many" / f"{number:03d}-{'x' * 40}").write_bytes(content)
    (root / "empty").touch()
    (root / "link").symlink_to("a/big")
    (root / "long").symlink_to("y/" * 1500 + "z")
    os.mkfifo(root / "fifo")
    with contextlib.suppress(OSError):
        os.setxattr(root / "a" / "text", "user.k", b"v")
    return root


BUILDS = {
    "zstd": ["--compressor", "zstd"],
    "lz4": ["--compressor", "lz4_block"],
    "none": ["--compressor", "none"],
    "batch": ["--batch-size", "0x10000", "--chunk-size", "0x40000"],
    "toc": ["--blob-inline-meta", "--features", "blob-toc"],
    "toc-batch": ["--blob-inline-meta", "--features", "blob-toc", "--batch-size", "0x10000"],
    "sha256": ["--digester", "sha256", "--chunk-size", "0x1000"],
}


@pytest.mark.tools
@pytest.mark.parametrize("build", BUILDS)
def test_images_of_nydus_are_read(
    peer: Callable[[str], Path], tmp_path: Path, source: Path, build: str
) -> None:
    folder = tmp_path / "blobs"
    folder.mkdir()
    inlined = "--blob-inline-meta" in BUILDS[build]
    boot_arguments = [] if inlined else ["--bootstrap", str(tmp_path / "boot")]
    command = [
        peer("nydus-image"), "create", "--type", "dir-rafs", "--blob-dir", folder,
        *boot_arguments, *BUILDS[build], source,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (path for path in folder.iterdir() if "." not in path.name)
    blob = path.read_bytes()

    def read_at(offset: int, size: int) -> bytes:
        return blob[offset : offset + size]

    boot = read_bootstrap(read_at, len(blob)) if inlined else (tmp_path / "boot").read_bytes()
    assert boot is not None
    check_bootstrap(boot)
    bootstrap = Bootstrap(boot)
    (entry,) = bootstrap.blobs
    digests = bootstrap.chunk_digests(0)
    assert check_blob(entry, digests, read_at, len(blob)) > 1_000_000
    stored = blob[entry.ci_offset :][: entry.ci_compressed_size + 4096]
    table = ChunkTable.from_stored(stored, entry)
    chunks: dict[int, memoryview] = {}
    for piece in table.pieces():
        data = read_at(piece.offset, piece.size)
        chunks |= dict(decode_piece(table, piece, data, digests, entry.blob_id))

    def content(indexes: Iterator[ChunkIndex]) -> bytes:
        return b"".join(bytes(chunks[index.chunk_index]) for index in indexes)

    count = 1
    for here, folders, files in os.walk(os.fsencode(source)):
        for name in folders + files:
            count += 1
            found = os.lstat(os.path.join(here, name))
            below = os.path.relpath(os.path.join(here, name), os.fsencode(source))
            inode = resolve(bootstrap, below)
            assert (inode.mode, inode.uid, inode.gid) == (
                found.st_mode, found.st_uid, found.st_gid,
            )  # fmt: skip
            assert inode.mtime * 10**9 + inode.mtime_ns == found.st_mtime_ns
            if stat.S_ISREG(found.st_mode):
                assert inode.nlink == found.st_nlink
                data = content(bootstrap.chunks(inode))
                assert data == Path(os.fsdecode(os.path.join(here, name))).read_bytes()
            elif stat.S_ISLNK(found.st_mode):
                assert bootstrap.readlink(inode) == os.readlink(os.path.join(here, name))
    assert count == bootstrap.inode_count
