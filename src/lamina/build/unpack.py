"""Turn an image back into what it was made from: a folder, or an OCI image of one layer."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat as stat_bits
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from lamina.build.layer_tar import UnpackReport, copy_content, write_layer
from lamina.build.options import work_folder
from lamina.content.lazy_image import LazyImage
from lamina.errors import StoreError, UsageError, os_hint
from lamina.http.client_options import ClientOptions
from lamina.image.base import Image, MetDirectories, Stat, shown
from lamina.image.first_names import FirstNames
from lamina.oci.manifest import (
    OCI_CONFIG,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    ImageConfig,
    Manifest,
    describe,
    encode,
    parse_document,
)
from lamina.oci.reference import Reference
from lamina.registry.open_repository import open_repository

GZIP_LEVEL = 2
DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
NOT_ALLOWED = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EINVAL)


def unpack_to_folder(image: Image, folder: str | os.PathLike[str]) -> UnpackReport:
    """Write the tree of an image into a folder, which is made or must be empty.

    As root everything is kept.  Others keep what they may set; the report notes the rest.  No path
    is ever followed through a symbolic link, so a hostile image cannot write outside the folder.

    Raises:
        UsageError: the folder has something in it.
        StoreError: it cannot be written.
        Error: what reading the image raises.
    """
    base = os.fspath(folder)
    try:
        os.makedirs(base, mode=0o755, exist_ok=True)
        if os.listdir(base):
            raise UsageError(f"{base} is not empty", hint="name a new or empty folder")
        root_fd = os.open(base, DIRECTORY_FLAGS & ~os.O_NOFOLLOW)
    except OSError as error:
        raise StoreError(f"{base} cannot be made: {error.strerror}", hint=os_hint(error)) from error
    try:
        return _FolderWriter(image, root_fd).run()
    finally:
        os.close(root_fd)


class _FolderWriter:
    def __init__(self, image: Image, root_fd: int) -> None:
        self._image = image
        self._root_fd = root_fd
        self._report = UnpackReport()
        self._first_names = FirstNames()

    def run(self) -> UnpackReport:
        met = MetDirectories(self._image.most_directory_bytes)
        # Directories that are being filled, each in its parent, and what is left of each.
        open_ones: list[tuple[Stat, Iterator[tuple[bytes, Stat]]]] = []
        here: Stat | None = self._image.root
        while here is not None:
            met.add(here)
            open_ones.append((here, self._image.scandir(here)))
            here = None
            while open_ones and here is None:
                here = self._fill(*open_ones[-1])
                if here is None:
                    self._finish(open_ones.pop()[0])
        self._report.entries += 1
        return self._report

    def _fill(self, directory: Stat, entries: Iterator[tuple[bytes, Stat]]) -> Stat | None:
        """Make entries of a directory up to the next directory, which is returned."""
        with self._directory(directory.path) as fd:
            for name, child in entries:
                with _named(child.path):
                    self._make(fd, name, child)
                if child.is_dir:
                    return child
        return None

    def _finish(self, directory: Stat) -> None:
        """Describe a directory that is full: what is made in it changes its time, and its mode may
        forbid making anything.
        """
        with self._directory(directory.path) as fd, _named(directory.path):
            self._describe(fd, directory)

    @contextmanager
    def _directory(self, path: bytes) -> Iterator[int]:
        """Open a directory of the folder name by name, following no link."""
        fd = os.dup(self._root_fd)
        try:
            for name in path.split(b"/"):
                if name:
                    with _named(path):
                        below = os.open(name, DIRECTORY_FLAGS, dir_fd=fd)
                    os.close(fd)
                    fd = below
            yield fd
        finally:
            os.close(fd)

    def _make(self, fd: int, name: bytes, status: Stat) -> None:
        self._report.entries += 1
        if status.is_dir:
            os.mkdir(name, 0o700, dir_fd=fd)
            return
        if status.nlink > 1:
            first = self._first_names.of(status)
            if first != status.path:
                self._link(first, fd, name)
                return
        if status.is_file:
            with open(os.open(name, FILE_FLAGS, 0o600, dir_fd=fd), "wb", buffering=0) as file:
                copy_content(self._image, status, file.write)
                self._report.content_bytes += status.size
                self._describe(file.fileno(), status)
        elif status.is_symlink:
            os.symlink(self._image.readlink(status), name, dir_fd=fd)
            self._describe_at(fd, name, status)
        else:
            self._make_special(fd, name, status)

    def _link(self, first: bytes, fd: int, name: bytes) -> None:
        head, _, source = first.rpartition(b"/")
        with self._directory(head) as there:
            os.link(source, name, src_dir_fd=there, dst_dir_fd=fd, follow_symlinks=False)

    def _make_special(self, fd: int, name: bytes, status: Stat) -> None:
        kind = stat_bits.S_IFMT(status.mode)
        try:
            os.mknod(name, kind | 0o600, os.makedev(*status.device), dir_fd=fd)
        except PermissionError:
            self._report.note("devices need root and are left out")
            self._report.entries -= 1
            return
        self._describe_at(fd, name, status)

    def _describe(self, fd: int, status: Stat) -> None:
        """Set owner, mode, attributes and time of an open file; in this order, as each may undo the
        one before.
        """
        self._chown(status, lambda: os.fchown(fd, status.uid, status.gid))
        os.fchmod(fd, stat_bits.S_IMODE(status.mode))
        self._set_xattrs(fd, status)
        os.utime(fd, ns=_times(status))

    def _describe_at(self, fd: int, name: bytes, status: Stat) -> None:
        """Do the same for what cannot be opened; the name was just made and is no link to
        elsewhere.
        """
        self._chown(
            status,
            lambda: os.chown(name, status.uid, status.gid, dir_fd=fd, follow_symlinks=False),
        )
        if not status.is_symlink:
            os.chmod(name, stat_bits.S_IMODE(status.mode), dir_fd=fd)
        self._set_xattrs(b"/proc/self/fd/%d/%s" % (fd, name), status)
        os.utime(name, ns=_times(status), dir_fd=fd, follow_symlinks=False)

    def _chown(self, status: Stat, change: Any) -> None:
        try:
            change()
        except PermissionError:
            if (status.uid, status.gid) != (os.geteuid(), os.getegid()):
                self._report.note("owners other than you need root and are not kept")

    def _set_xattrs(self, where: int | bytes, status: Stat) -> None:
        follow = {} if isinstance(where, int) else {"follow_symlinks": False}
        for name, value in self._image.xattrs(status).items():
            try:
                os.setxattr(where, name, value, **follow)
            except OSError as error:
                if error.errno not in NOT_ALLOWED:
                    raise
                namespace = name.partition(b".")[0].decode("utf-8", "replace")
                self._report.note(f"some extended attributes ({namespace}) could not be set")


def _times(status: Stat) -> tuple[int, int]:
    nanoseconds = status.mtime * 1_000_000_000 + status.mtime_ns
    return nanoseconds, nanoseconds


@contextmanager
def _named(path: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{shown(path)} cannot be written: {error.strerror}", hint=os_hint(error)
        ) from error


def unpack_to_image(
    image: LazyImage,
    destination: Reference,
    *,
    client: ClientOptions | None = None,
    work_dir: str | None = None,
) -> tuple[Descriptor, UnpackReport]:
    """Push an ordinary OCI image of one gzip layer with the tree and configuration of a native one.

    Returns (descriptor of its manifest, report).
    """
    with (
        tempfile.TemporaryFile(dir=work_folder(work_dir)) as file,
        open_repository(destination, write=True, options=client) as target,
    ):
        layer, diff_id, report = _write_gzip(image, file)
        file.seek(0)
        target.push_blob(layer, file)
        config = _one_layer_config(image, diff_id)
        described = describe(OCI_CONFIG, config)
        target.push_blob(described, io.BytesIO(config))
        manifest = Manifest(
            schema_version=2, media_type=OCI_MANIFEST, config=described, layers=(layer,)
        )
        pushed = target.push_manifest(destination.tag, OCI_MANIFEST, encode(manifest))
    return pushed, report


def _write_gzip(image: Image, file: BinaryIO) -> tuple[Descriptor, str, UnpackReport]:
    """Write the layer and return (its descriptor, digest of the tar inside, report)."""
    engine = _gzip_engine()
    plain, packed = hashlib.sha256(), hashlib.sha256()
    size = 0

    def emit(data: bytes) -> None:
        nonlocal size
        packed.update(data)
        size += file.write(data)

    def write(data: bytes) -> None:
        plain.update(data)
        emit(engine.compress(data))

    report = write_layer(image, write)
    emit(engine.flush())
    file.flush()
    descriptor = Descriptor(
        media_type=OCI_LAYER_GZIP, digest=f"sha256:{packed.hexdigest()}", size=size
    )
    return descriptor, f"sha256:{plain.hexdigest()}", report


def _gzip_engine() -> Any:
    try:
        from isal import isal_zlib as engine
    except ImportError:
        import zlib as engine  # type: ignore[no-redef]
    return engine.compressobj(GZIP_LEVEL, engine.DEFLATED, 31)


def _one_layer_config(image: LazyImage, diff_id: str) -> bytes:
    document = parse_document(image.config.raw, "image configuration", ImageConfig)
    return encode(
        {
            **document,
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created_by": "lamina unpack"}],
        }
    )
