"""Disks in guests: their kernels check them by hash trees, decrypt them, and see what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lamina.block.base import Disk, Segment
from lamina.block.disk import DiskView
from lamina.block.encryption import EncryptedDisk, crypt_table
from lamina.block.export import export_disk
from lamina.block.formats import write_qcow2
from lamina.block.hash_area import make_hash_area
from lamina.block.verity import VerityOptions
from lamina.serve.nbd.connection import Served
from lamina.serve.nbd.listening import listen_unix
from lamina.serve.nbd.negotiation import Export
from lamina.serve.nbd.server import NbdServer
from tests.support import tools
from tests.support.guest import disk_device, nbd_disk, require_guest, run_in_guest
from tests.support.guest_kernel import require_kernel_package
from tests.support.native_images import MemorySource
from tests.support.nbd_disk import opened_disk
from tests.support.serving import sample_image

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.slow,
    pytest.mark.guest,
    pytest.mark.timeout(1200),
]

CHECKS = Path(__file__).parents[1] / "support" / "in_guest_disks.py"


class FlippedDisk:
    """Another disk, with one byte that is wrong whenever it is read."""

    def __init__(self, disk: Disk, place: int) -> None:
        self._disk = disk
        self._place = place
        self.size_bytes = disk.size_bytes

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        count = self._disk.read_into(offset, buffer)
        if offset <= self._place < offset + count:
            buffer[self._place - offset] ^= 1
        return count

    def read_ready(self, offset: int, view: memoryview) -> bool:
        return self._disk.is_ready(offset, len(view)) and bool(self.read_into(offset, view))

    def segments(self, offset: int, size_bytes: int) -> Iterator[Segment]:
        return self._disk.segments(offset, size_bytes)

    def is_ready(self, offset: int, size_bytes: int) -> bool:
        return self._disk.is_ready(offset, size_bytes)

    def is_hole(self, offset: int, size_bytes: int) -> bool:
        return self._disk.is_hole(offset, size_bytes)


@contextmanager
def served(disk: Disk, socket: Path) -> Iterator[list[str]]:
    """The disk over NBD: the options of QEMU."""
    with NbdServer(listen_unix(str(socket)), Served(disk, Export(b"", disk.size_bytes))) as server:
        server.start()
        yield nbd_disk(socket, socket.stem)


def place_of(disk: Disk, content: bytes) -> int:
    """Where a file's content is on a disk."""
    data = bytearray(disk.size_bytes)
    assert disk.read_into(0, data) == len(data)
    found = data.find(content[:4096])
    assert found > 0
    return found


@contextmanager
def storage_daemon(nbd: Path, vhost: Path) -> Iterator[list[str]]:
    """A disk over NBD as vhost-user-blk: the options of QEMU."""
    node = f"driver=nbd,server.type=unix,server.path={nbd},read-only=on,reconnect-delay=60"
    command = ["qemu-storage-daemon", "--blockdev", f"{node},node-name=image"]
    export = f"type=vhost-user-blk,id=image,node-name=image,addr.type=unix,addr.path={vhost}"
    command += ["--export", export, "--chardev", "stdio,id=c", "--monitor", "chardev=c"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert "QMP" in process.stdout.readline()
            memory = "memory-backend-memfd,id=memory,size=1536M,share=on"
            yield [
                *("-object", memory, "-numa", "node,memdev=memory"),
                *("-chardev", f"socket,id=vhost,path={vhost}"),
                *("-device", "vhost-user-blk-pci,chardev=vhost,num-queues=1"),
            ]
        finally:
            # Told to end while its user goes away, it may stay.
            process.kill()


@pytest.mark.parametrize("release", ["6.1", "6.12"])
def test_a_guests_kernel_checks_and_decrypts_disks(release: str, tmp_path: Path) -> None:
    require_guest()
    tools.require_tool("qemu-storage-daemon", "qemu-img")
    kernel = require_kernel_package(release)
    built = sample_image()
    wrong, content = max(built.contents.items(), key=lambda item: len(item[1]))
    with ExitStack() as stack:
        enter = stack.enter_context
        view: DiskView = enter(opened_disk(built, MemorySource(built), tmp_path / "image"))
        area = make_hash_area(view, VerityOptions(salt=b"salt"), view.uuid)
        disk, verity = area.behind(view)
        table = verity.table("BELOW", "BELOW")
        flipped = FlippedDisk(disk, place_of(view, content))
        key = os.urandom(64)
        crypt = crypt_table(disk.size_bytes, "BELOW").replace("KEY", key.hex())
        raw, qcow2, passphrase = (tmp_path / name for name in ("raw", "disk.qcow2", "passphrase"))
        export_disk(disk, raw)
        passphrase.write_text("a secret")
        write_qcow2(raw, qcow2, passphrase)
        secret = ["-object", f"secret,id=secret,file={passphrase}"]
        options = f"driver=qcow2,read-only=on,file.driver=file,file.filename={qcow2}"
        devices = [
            *enter(served(disk, tmp_path / "b")),
            *enter(served(flipped, tmp_path / "c")),
            *enter(served(EncryptedDisk(disk, key), tmp_path / "d")),
            *secret,
            *disk_device(f"{options},encrypt.format=luks,encrypt.key-secret=secret", "qcow2"),
            *enter(storage_daemon(tmp_path / "b", tmp_path / "vhost")),
        ]
        checks: list[dict[str, Any]] = [
            {"name": "plain", "device": "/dev/vdb", "layers": []},
            {"name": "verity", "device": "/dev/vdb", "layers": [table]},
            {"name": "flip", "device": "/dev/vdc", "layers": [table], "wrong": wrong.decode()},
            {"name": "crypt", "device": "/dev/vdd", "layers": [crypt, table]},
            {"name": "qcow2", "device": "/dev/vde", "layers": [table]},
            {"name": "vhost", "device": "/dev/vdf", "layers": [table]},
        ]
        arguments = [json.dumps(each) for each in checks]
        run = run_in_guest(kernel, CHECKS, *arguments, devices=devices)
    assert run.exit_code == 0, f"{run.output}\n{run.console[-3000:]}"
    assert run.output.split() == [word for each in checks for word in ("ok", each["name"])]
    assert "is corrupted" in run.console, run.console
