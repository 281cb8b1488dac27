"""A small image as a disk over NBD, and the least that an NBD client can do."""

from __future__ import annotations

import socket
import ssl
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamina.block.disk import DiskView
from lamina.errors import FetchError
from lamina.serve.nbd.connection import Served
from lamina.serve.nbd.listening import listen_unix
from lamina.serve.nbd.negotiation import Export
from lamina.serve.nbd.server import NbdServer
from lamina.wire import nbd
from lamina.wire.nbd_reply import SIMPLE_REPLY
from tests.support import tools
from tests.support.native_images import BuiltImage, MemorySource, build_image, open_bootstrap
from tests.support.native_images import some_bytes as some


class PassingError(FetchError):
    """What a source that does not answer now ends in."""

    transient = True


class Source(MemorySource):
    """Blobs in memory; can go down, and can be wrong."""

    def __init__(self, image: BuiltImage) -> None:
        super().__init__(image)
        self.down = False
        self.wrong = False

    def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
        if self.down:
            raise PassingError("the source is down")
        data = super().read_range(blob_id, offset, size_bytes)
        return bytes(byte ^ 1 for byte in data) if self.wrong else data


def disk_image() -> BuiltImage:
    """Return an image of two blobs with a large file, small ones, and a hole."""
    files = {b"large": some(3_000_001, 2), b"zeros": bytes(200_000)}
    files |= {b"many/%03d" % n: some(n * 311, n) for n in range(1, 100)}
    return build_image(files, chunk_size=65536, pack_size=32768, blob_count=2)


@contextmanager
def opened_disk(built: BuiltImage, source: MemorySource, folder: Path) -> Iterator[DiskView]:
    """Open the disk of *built*, with a store of its own in *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "image.boot"
    path.write_bytes(built.bootstrap)
    with open_bootstrap(path, source, store=folder / "store") as image:
        disk = DiskView(image)
        disk.open_blobs()
        yield disk


def read_disk(disk: DiskView) -> bytes:
    """Return all of it."""
    data = bytearray(disk.size_bytes)
    assert disk.read_into(0, data) == len(data)
    return bytes(data)


@contextmanager
def serving(
    disk: DiskView,
    folder: Path,
    give_up_s: float | None = None,
    tls: ssl.SSLContext | None = None,
) -> Iterator[str]:
    """Serve on a unix socket; its URI, or the path of the socket if TLS is wanted."""
    path = folder / "nbd.sock"
    served = Served(disk, Export(b"", disk.size_bytes), give_up_s, tls)
    with NbdServer(listen_unix(str(path)), served) as server:
        server.start()
        yield str(path) if tls is not None else f"nbd+unix:///?socket={path}"


def run(*command: str | Path, code: int = 0) -> str:
    """Run a program that is to end with *code*; what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def nbdsh(script: str) -> str:
    """Run a script of libnbd's shell, which is of Debian's Python."""
    tools.require_tool("nbdsh")
    done = subprocess.run(
        ["nbdsh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Client:
    """Talks to a server on a unix socket, up to where its options are taken."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        try:
            self.sock.connect(str(path))
            self.take(nbd.GREETING.size)
            self.sock.sendall(nbd.CLIENT_FLAGS.pack(3))
        except BaseException:
            self.sock.close()
            raise

    def take(self, size_bytes: int) -> bytes:
        """Return as many bytes as are wanted, less at the end of the stream."""
        data = b""
        while len(data) < size_bytes:
            part = self.sock.recv(size_bytes - len(data))
            if not part:
                break
            data += part
        return data

    def is_cut_off(self) -> bool:
        """Wait for the server's next bytes, and tell whether it closed the connection instead; one
        that does so with our bytes unread resets it.
        """
        try:
            return self.take(1) == b""
        except ConnectionResetError:
            return True

    def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option; the types and the data of all its answers."""
        self.sock.sendall(nbd.OPTION.pack(nbd.OPTION_MAGIC, option, len(data)) + data)
        answers = []
        while True:
            _, _, kind, size = nbd.OPTION_REPLY.unpack(self.take(nbd.OPTION_REPLY.size))
            answers.append((kind, self.take(size)))
            if kind == nbd.OptionAnswer.ACK or kind & 1 << 31:
                return answers

    def go(self) -> int:
        """Choose the export; its size."""
        answers = self.option(nbd.Option.GO, struct.pack(">IH", 0, 0))
        size: int = struct.unpack_from(">HQ", answers[0][1])[1]
        return size

    def read(self, offset: int, size_bytes: int) -> tuple[int, bytes] | None:
        """Return the error, or 0, and the data of a simple reply; None if the server went away."""
        request = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.Command.READ, 1, offset, size_bytes)
        self.sock.sendall(request)
        head = self.take(SIMPLE_REPLY.size)
        if len(head) < SIMPLE_REPLY.size:
            return None
        _, error, _ = SIMPLE_REPLY.unpack(head)
        data = b"" if error else self.take(size_bytes)
        return None if not error and len(data) < size_bytes else (error, data)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()
