"""A disk over NBD in the hands of libnbd's and QEMU's tools."""

from __future__ import annotations

import hashlib
import itertools
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.block.disk import DiskView
from lamina.errors import UsageError
from lamina.serve.nbd.connection import REQUESTS_AT_ONCE, Served
from lamina.serve.nbd.listening import listen_tcp, listen_unix
from lamina.serve.nbd.negotiation import Export
from lamina.serve.nbd.server import NbdServer
from lamina.wire import nbd
from lamina.wire.nbd_reply import SIMPLE_REPLY
from tests.support import tools
from tests.support.native_images import BuiltImage, MemorySource, push_image
from tests.support.nbd_disk import (
    Client,
    Source,
    disk_image,
    nbdsh,
    opened_disk,
    read_disk,
    run,
    serving,
)

pytestmark = pytest.mark.tools


@pytest.fixture(scope="module")
def built() -> BuiltImage:
    return disk_image()


@pytest.fixture
def source(built: BuiltImage) -> Source:
    return Source(built)


@pytest.fixture
def disk(built: BuiltImage, source: Source, tmp_path: Path) -> Iterator[DiskView]:
    with opened_disk(built, source, tmp_path / "mine") as disk:
        yield disk


@pytest.fixture
def expected(built: BuiltImage, tmp_path: Path) -> bytes:
    with opened_disk(built, MemorySource(built), tmp_path / "other") as disk:
        return read_disk(disk)


def test_nbdinfo_sees_what_the_export_can_do(disk: DiskView, tmp_path: Path) -> None:
    (nbdinfo,) = tools.require_tool("nbdinfo")
    with serving(disk, tmp_path) as uri:
        (export,) = json.loads(run(nbdinfo, "--json", uri))["exports"]
        extents = json.loads(run(nbdinfo, "--map", "--json", uri))
        listed = json.loads(run(nbdinfo, "--list", "--json", uri))
    assert export["export-size"] == disk.size_bytes
    assert export["is_read_only"] and export["can_multi_conn"] and export["can_df"]
    assert export["contexts"] == ["base:allocation"]
    assert "EROFS" in export["content"]
    assert (export["block_size_minimum"], export["block_size_preferred"]) == (1, 4096)
    segments = list(disk.segments(0, disk.size_bytes))
    assert [(e["offset"], e["length"], e["type"]) for e in extents] == [
        (s.offset, s.size_bytes, 3 if s.is_hole else 0) for s in segments
    ]
    assert len(listed["exports"]) == 1


def test_nbdcopy_and_qemu_img_read_the_disk(
    disk: DiskView, expected: bytes, tmp_path: Path
) -> None:
    nbdcopy, qemu_img = tools.require_tool("nbdcopy", "qemu-img")
    (tmp_path / "expected").write_bytes(expected)
    with serving(disk, tmp_path) as uri:
        run(nbdcopy, uri, tmp_path / "copy")
        run(nbdcopy, "--connections=2", "--requests=64", uri, tmp_path / "together")
        run(qemu_img, "convert", "-f", "raw", "-O", "qcow2", uri, tmp_path / "disk.qcow2")
        said = run(qemu_img, "compare", "-f", "raw", "-F", "raw", tmp_path / "expected", uri)
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "together").read_bytes() == expected
    assert "identical" in said
    run(qemu_img, "compare", "-F", "qcow2", "-f", "raw", tmp_path / "copy", tmp_path / "disk.qcow2")


def test_tcp_on_loopback_serves_clients_without_structured_replies(
    disk: DiskView, expected: bytes, tmp_path: Path
) -> None:
    (nbdcopy,) = tools.require_tool("nbdcopy")
    with NbdServer(
        listen_tcp("127.0.0.1", 0), Served(disk, Export(b"x", disk.size_bytes))
    ) as server:
        server.start()
        uri = f"nbd://127.0.0.1:{server.port}/x"
        run(nbdcopy, uri, tmp_path / "copy")
        script = (
            f"h.set_request_structured_replies(False); h.set_export_name('x')\n"
            f"h.connect_tcp('127.0.0.1', '{server.port}')\n"
            "import hashlib; n = h.get_size(); assert not h.get_structured_replies_negotiated()\n"
            "d = b''.join(h.pread(min(65537, n - o), o) for o in range(0, n, 65537))\n"
            "print(hashlib.sha256(d).hexdigest())\n"
        )
        said = nbdsh(script)
        run(tools.require_tool("nbdinfo")[0], f"nbd://127.0.0.1:{server.port}/other", code=1)
    assert (tmp_path / "copy").read_bytes() == expected
    assert said.strip() == hashlib.sha256(expected).hexdigest()


def test_odd_requests_get_errors_and_the_connection_lives(
    disk: DiskView, expected: bytes, tmp_path: Path
) -> None:
    (qemu_io,) = tools.require_tool("qemu-io")
    end = disk.size_bytes
    with serving(disk, tmp_path) as uri:
        command = [qemu_io, "-r", "-f", "raw", uri]
        for each in ("read 0 1", f"read {end - 3} 3", "read 5000 70001", "aio_read 4096 1M"):
            command += ["-c", each]
        assert "read failed" not in run(*command)
        script = (
            "h.set_strict_mode(0)\n"
            "for bad in (lambda: h.pread(4096, h.get_size()), lambda: h.trim(4096, 0),\n"
            "            lambda: h.zero(4096, 0)):\n"
            "    try: bad()\n"
            "    except nbd.Error as error: print(error.errno)\n"
            "h.cache(4096, 0); h.flush()\n"
            "assert h.pread(9, 1024)[:4] == bytes.fromhex('e2e1f5e0')\n"
        )
        said = nbdsh(f"h.connect_uri({uri!r})\n{script}")
    assert said.split() == ["EINVAL", "EPERM", "EPERM"]


def test_requests_are_taken_however_the_stream_is_cut(
    disk: DiskView, expected: bytes, tmp_path: Path
) -> None:
    count, size = 3 * REQUESTS_AT_ONCE + 5, 700
    with serving(disk, tmp_path), Client(tmp_path / "nbd.sock") as client:
        client.go()
        asked = {n: n * 4099 % (len(expected) - size) for n in range(count)}
        requests = b"".join(
            nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.Command.READ, *each, size)
            for each in asked.items()
        )
        # One byte, some and a half of one, and many more than are taken at once.
        for start, stop in itertools.pairwise((0, 1, 5 * nbd.REQUEST.size + 13, len(requests))):
            client.sock.sendall(requests[start:stop])
        while asked:
            _, error, number = SIMPLE_REPLY.unpack(client.take(SIMPLE_REPLY.size))
            offset = asked.pop(number)
            assert (error, client.take(size)) == (0, expected[offset : offset + size])
        client.sock.sendall(requests[:20])
        client.sock.shutdown(socket.SHUT_WR)
        assert client.is_cut_off()


def test_a_late_answer_waits_and_is_no_error(
    disk: DiskView, expected: bytes, source: Source, tmp_path: Path
) -> None:
    (nbdcopy,) = tools.require_tool("nbdcopy")
    source.down = True
    with serving(disk, tmp_path) as uri:
        copying = subprocess.Popen([nbdcopy, uri, str(tmp_path / "copy")])
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                copying.wait(2)
            source.down = False
            assert copying.wait(60) == 0
        finally:
            copying.kill()
            copying.wait()
    assert (tmp_path / "copy").read_bytes() == expected


def test_what_waits_for_ever_ends_with_the_server_or_when_it_gives_up(
    disk: DiskView, source: Source, tmp_path: Path
) -> None:
    (nbdcopy,) = tools.require_tool("nbdcopy")
    source.down = True
    with serving(disk, tmp_path, give_up_s=0.1) as uri:
        run(nbdcopy, uri, tmp_path / "copy", code=1)
    with serving(disk, tmp_path / "..") as uri:
        copying = subprocess.Popen(
            [nbdcopy, uri, str(tmp_path / "copy")], stderr=subprocess.DEVNULL
        )
        time.sleep(1)
        assert copying.poll() is None
    assert copying.wait(30) != 0
    assert not [t for t in threading.enumerate() if t.name.startswith("lamina-nbd")]


def test_wrong_bytes_are_an_error_at_once_and_never_shown(
    disk: DiskView, expected: bytes, source: Source, tmp_path: Path
) -> None:
    (nbdcopy,) = tools.require_tool("nbdcopy")
    source.wrong = True
    with serving(disk, tmp_path) as uri:
        run(nbdcopy, uri, tmp_path / "copy", code=1)
        source.wrong = False
        run(nbdcopy, uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == expected


def test_the_verb_serves_until_it_is_told_to_end(
    built: BuiltImage, expected: bytes, tmp_path: Path
) -> None:
    (nbdcopy,) = tools.require_tool("nbdcopy")
    push_image(built, tmp_path / "layout")
    command = [sys.executable, "-m", "lamina", "serve", "nbd", "--json"]
    command += ["--store", str(tmp_path / "store"), f"oci:{tmp_path}/layout:latest"]
    command += ["--socket", str(tmp_path / "disk.sock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert (tmp_path / "disk.sock").stat().st_mode & 0o777 == 0o600
        run(nbdcopy, told["uri"], tmp_path / "copy")
        process.terminate()
        assert process.wait(30) == 0
    assert (tmp_path / "copy").read_bytes() == expected
    assert told["size"] == len(expected)
    assert not (tmp_path / "disk.sock").exists()


def test_what_a_guest_reads_becomes_a_profile(built: BuiltImage, tmp_path: Path) -> None:
    push_image(built, tmp_path / "layout")
    command = [sys.executable, "-m", "lamina", "serve", "nbd", "--json", "--profile", "none"]
    command += ["--store", str(tmp_path / "store"), "--socket", str(tmp_path / "disk.sock")]
    command += ["--record", str(tmp_path / "profile"), f"oci:{tmp_path}/layout:latest"]
    with opened_disk(built, MemorySource(built), tmp_path / "other") as disk:
        place = read_disk(disk).find(built.contents[b"large"][:4096])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        uri = json.loads(process.stdout.readline())["uri"]
        nbdsh(f"h.connect_uri({uri!r}); h.pread(8192, {place}); h.pread(512, {place + 32768})")
        process.terminate()
        assert process.wait(60) == 0
    lines = (tmp_path / "profile").read_text().splitlines()
    assert lines[2:] == ["0-1,8 /large"], lines


def test_nothing_is_served_to_other_machines(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "192.0.2.1", "::", "localhost"):
        with pytest.raises(UsageError):
            listen_tcp(host, 0)
    path = tmp_path / "file"
    path.write_bytes(b"precious")
    with pytest.raises(UsageError):
        listen_unix(str(path))
    with listen_unix(str(tmp_path / "sock")), pytest.raises(UsageError):
        listen_unix(str(tmp_path / "sock"))
    listen_unix(str(tmp_path / "sock")).close()
