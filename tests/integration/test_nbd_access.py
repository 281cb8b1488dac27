"""How clients come to a disk over NBD: TLS, sockets of systemd, extended headers, printed lines."""

from __future__ import annotations

import contextlib
import json
import shlex
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.block.disk import DiskView
from lamina.errors import UnsupportedError, UsageError
from lamina.serve.nbd import connection
from lamina.serve.nbd.commands import MACHINES, DiskAddress, machine_commands
from lamina.serve.nbd.listening import listen_tcp
from lamina.serve.nbd.tls import certificate_context, key_context, read_keys
from lamina.wire import nbd
from lamina.wire.nbd import Command, Option, OptionAnswer
from lamina.wire.nbd_reply import EXTENDED_CHUNK, Chunk
from tests.support import tools
from tests.support.native_images import MemorySource, push_image
from tests.support.nbd_disk import (
    Client,
    disk_image,
    nbdsh,
    opened_disk,
    read_disk,
    run,
    serving,
)
from tests.support.tls_folders import make_tls_folder

pytestmark = pytest.mark.tools


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[DiskView]:
    built = disk_image()
    with opened_disk(built, MemorySource(built), tmp_path / "image") as disk:
        yield disk


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    return make_tls_folder(tmp_path / "pki")


def connecting(path: str, folder: Path, rest: str) -> str:
    return (
        f"h.set_tls(nbd.TLS_REQUIRE); h.set_tls_certificates({str(folder)!r})\n"
        f"h.set_tls_verify_peer(False)\nh.connect_unix({path!r})\n{rest}"
    )


def test_the_disk_is_read_through_tls(disk: DiskView, certificates: Path, tmp_path: Path) -> None:
    nbdcopy, qemu_img = tools.require_tool("nbdcopy", "qemu-img")
    (tmp_path / "expected").write_bytes(read_disk(disk))
    context = certificate_context(certificates, verify_client=False)
    creds = f"tls-creds-x509,id=tls,endpoint=client,dir={certificates}"
    with serving(disk, tmp_path, tls=context) as path:
        uri = f"nbds+unix://localhost/?socket={path}&tls-certificates={certificates}"
        run(nbdcopy, uri, tmp_path / "copy")
        source = f"driver=nbd,server.type=unix,server.path={path},tls-creds=tls"
        compare = [qemu_img, "compare", "--object", creds, "--image-opts"]
        said = run(
            *compare,
            f"driver=raw,file.filename={tmp_path}/expected",
            f"{source},tls-hostname=localhost",
        )
        large = nbdsh(connecting(path, certificates, "print(len(h.pread(4 << 20, 0)))"))
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "expected").read_bytes()
    assert "identical" in said
    assert int(large) == 4 << 20


def test_nothing_is_told_without_tls(disk: DiskView, certificates: Path, tmp_path: Path) -> None:
    context = certificate_context(certificates, verify_client=False)
    with serving(disk, tmp_path, tls=context) as path:
        with Client(Path(path)) as client:
            for option in (Option.GO, Option.LIST, Option.STRUCTURED_REPLY, Option.INFO):
                ((kind, _),) = client.option(option, bytes(6))
                assert kind == OptionAnswer.ERROR_TLS_REQUIRED
            client.sock.sendall(nbd.OPTION.pack(nbd.OPTION_MAGIC, Option.EXPORT_NAME, 0))
            assert client.is_cut_off()
        run(*tools.require_tool("nbdinfo"), f"nbd+unix:///?socket={path}", code=1)


def test_what_is_said_before_tls_counts_for_nothing(
    disk: DiskView, certificates: Path, tmp_path: Path
) -> None:
    context = certificate_context(certificates, verify_client=False)
    with serving(disk, tmp_path, tls=context) as path, Client(Path(path)) as client:
        ((kind, _),) = client.option(Option.STARTTLS, b"data")
        assert kind == OptionAnswer.ERROR_INVALID
        # Sent in one piece with the option, as somebody in between might.
        injected = nbd.OPTION.pack(nbd.OPTION_MAGIC, Option.LIST, 0)
        client.sock.sendall(nbd.OPTION.pack(nbd.OPTION_MAGIC, Option.STARTTLS, 0) + injected)
        size = nbd.OPTION_REPLY.size
        assert nbd.OPTION_REPLY.unpack(client.take(size))[2] == OptionAnswer.ACK
        # It is no beginning of TLS: the connection ends, perhaps with an alert (content type 21).
        rest = client.take(1 << 16)
        assert rest == b"" or rest[0] == 21


def test_who_begins_slowly_is_cut_off(
    disk: DiskView, certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be anybody, and would keep others from one of few places."""
    monkeypatch.setattr(connection, "HANDSHAKE_S", 1.0)
    context = certificate_context(certificates, verify_client=True)
    with serving(disk, tmp_path, tls=context) as path, Client(Path(path)) as client:
        client.sock.settimeout(0.1)
        said = nbd.OPTION.pack(nbd.OPTION_MAGIC, Option.LIST, 1 << 10) + bytes(1 << 10)
        sent = 0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while sent < 600:
                client.sock.sendall(said[sent : sent + 1])
                sent += 1
                with contextlib.suppress(TimeoutError):
                    if not client.sock.recv(1):
                        break
        assert sent < 600


def test_only_clients_of_the_authority_are_served_where_that_is_asked(
    disk: DiskView, certificates: Path, tmp_path: Path
) -> None:
    context = certificate_context(certificates, verify_client=True)
    strangers = make_tls_folder(tmp_path / "strangers")
    nobody = make_tls_folder(tmp_path / "nobody", with_client=False)
    with serving(disk, tmp_path, tls=context) as path:
        size = nbdsh(connecting(path, certificates, "print(h.get_size())"))
        assert int(size) == disk.size_bytes
        for folder in (strangers, nobody):
            script = connecting(path, folder, "h.pread(512, 0); print('read')")
            with pytest.raises(AssertionError, match="nbd"):
                nbdsh(script)


def test_files_of_tls_that_cannot_be_used_are_named(certificates: Path, tmp_path: Path) -> None:
    (certificates / "ca-cert.pem").write_text("no certificate")
    with pytest.raises(UsageError, match=r"ca-cert\.pem"):
        certificate_context(certificates, verify_client=True)
    (certificates / "server-key.pem").unlink()
    with pytest.raises(UsageError, match=r"server-key\.pem"):
        certificate_context(certificates, verify_client=False)
    keys = tmp_path / "keys"
    for text in ("", "user", "user:", ":aabb", "user:xyz", "user:" + "ab" * 15):
        keys.write_text(text)
        with pytest.raises(UsageError):
            read_keys(keys)
    keys.write_text("# made by psktool\nuser:" + "ab" * 16 + "\nother:" + "cd" * 32 + "\n")
    assert read_keys(keys) == {"user": b"\xab" * 16, "other": b"\xcd" * 32}


def test_shared_keys_work_or_are_refused_in_words(disk: DiskView, tmp_path: Path) -> None:
    keys = tmp_path / "keys.psk"
    keys.write_text("user:" + "ab" * 32 + "\n")
    if not getattr(ssl, "HAS_PSK", False):
        with pytest.raises(UnsupportedError, match=r"3\.13"):
            key_context(keys)
        return
    script = f"h.set_tls(nbd.TLS_REQUIRE); h.set_tls_psk_file({str(keys)!r})\n"
    script += "h.set_tls_username('user')\n"
    with serving(disk, tmp_path, tls=key_context(keys)) as path:
        size = nbdsh(f"{script}h.connect_unix({path!r}); print(h.get_size())")
        keys.write_text("user:" + "ac" * 32 + "\n")
        with pytest.raises(AssertionError, match="nbd"):
            nbdsh(f"{script}h.connect_unix({path!r}); print(h.get_size())")
    assert int(size) == disk.size_bytes


def test_a_program_hands_its_socket_over(disk: DiskView, tmp_path: Path) -> None:
    (nbdinfo,) = tools.require_tool("nbdinfo")
    push_image(disk_image(), tmp_path / "layout")
    serve = [sys.executable, "-m", "lamina", "serve", "nbd", "--store", tmp_path / "store"]
    reference = f"oci:{tmp_path}/layout:latest"
    said = run(nbdinfo, "--size", "--", "[", *serve, reference, "]")
    assert int(said) == disk.size_bytes
    done = subprocess.run([*serve, reference], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nothing says where to serve" in done.stderr


def test_systemd_hands_a_socket_over(disk: DiskView, tmp_path: Path) -> None:
    activate, nbdcopy = tools.require_tool("systemd-socket-activate", "nbdcopy")
    push_image(disk_image(), tmp_path / "layout")
    path = tmp_path / "disk.sock"
    words = [activate, "-l", path, "-E", f"LAMINA_STORE={tmp_path}/store"]
    words += [sys.executable, "-m", "lamina", "serve", "nbd", "--json"]
    # Two sockets are one too many.
    more = [activate, "-l", tmp_path / "other", *words[1:], "oci:nowhere:latest"]
    with subprocess.Popen(more, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "Listening" in line and str(path) in line:
                client = socket.socket(socket.AF_UNIX)
                client.connect(str(path))
            elif "one socket is to be handed over, not 2" in line:
                break
        assert process.wait(60) == 2
    client.close()
    path.unlink()
    with subprocess.Popen(
        [*words, f"oci:{tmp_path}/layout:latest"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        while b"Listening" not in process.stderr.readline():
            pass
        run(nbdcopy, f"nbd+unix:///?socket={path}", tmp_path / "copy")
        process.terminate()
        assert process.wait(60) == 0
    assert (tmp_path / "copy").read_bytes() == read_disk(disk)
    assert path.exists(), "the socket is whose it was"


def test_extended_headers_have_lengths_of_64_bits(disk: DiskView, tmp_path: Path) -> None:
    expected = read_disk(disk)
    with serving(disk, tmp_path) as uri, Client(Path(uri.rpartition("=")[2])) as client:
        assert client.option(Option.EXTENDED_HEADERS)[-1][0] == OptionAnswer.ACK
        refused = client.option(Option.STRUCTURED_REPLY)[-1][0]
        assert refused == OptionAnswer.ERROR_EXTENDED_HEADERS_REQUIRED
        name = b"base:allocation"
        query = bytes(4) + (1).to_bytes(4, "big") + len(name).to_bytes(4, "big") + name
        assert client.option(Option.SET_META_CONTEXT, query)[0][0] == OptionAnswer.META_CONTEXT
        size = client.go()
        assert size == disk.size_bytes

        def ask(command: int, offset: int, length: int, flags: int = 0) -> tuple[int, bytes]:
            request = nbd.EXTENDED_REQUEST.pack(
                nbd.EXTENDED_REQUEST_MAGIC, flags, command, 77, offset, length
            )
            client.sock.sendall(request)
            fields = EXTENDED_CHUNK.unpack(client.take(EXTENDED_CHUNK.size))
            assert fields[:2] == (0x6E8A278C, 1)
            assert fields[3:5] == (77, offset)
            return fields[2], client.take(fields[5])

        kind, data = ask(Command.READ, 4096, 70_000)
        assert kind == Chunk.OFFSET_DATA
        assert data == (4096).to_bytes(8, "big") + expected[4096:74_096]
        kind, data = ask(Command.BLOCK_STATUS, 0, size)
        assert kind == Chunk.BLOCK_STATUS_EXTENDED
        assert int.from_bytes(data[4:8], "big") == (len(data) - 8) // 16
        found = [
            (int.from_bytes(data[at : at + 8], "big"), data[at + 15])
            for at in range(8, len(data), 16)
        ]
        assert found == [
            (segment.size_bytes, 3 if segment.is_hole else 0) for segment in disk.segments(0, size)
        ]
        # Longer than 32 bits can say: not on this disk, and that is an answer.
        kind, _ = ask(Command.CACHE, 0, 1 << 40)
        assert kind == Chunk.ERROR
        assert ask(Command.CACHE, 0, size)[0] == Chunk.NONE
        assert ask(Command.READ, 0, 512)[1][8 + 0 :] == expected[:512]
        # What a client says of its own bytes is not taken for a request.
        client.sock.sendall(
            nbd.EXTENDED_REQUEST.pack(nbd.EXTENDED_REQUEST_MAGIC, 1 << 5, 7, 1, 0, 32) + bytes(32)
        )
        assert client.is_cut_off()


def test_other_machines_are_served_only_if_they_prove_who_they_are(certificates: Path) -> None:
    with pytest.raises(UsageError):
        listen_tcp("0.0.0.0", 0)
    listen_tcp("0.0.0.0", 0, is_guarded=True).close()


def printed(machine: str, image: str, *options: str | Path) -> list[list[str]]:
    said = run(
        *(sys.executable, "-m", "lamina", "serve", "nbd", image, *options),
        *("--print-command", machine),
    )
    return [shlex.split(line) for line in said.splitlines()]


def test_printed_lines_are_taken_by_qemu(
    disk: DiskView, certificates: Path, tmp_path: Path
) -> None:
    tools.require_tool("qemu-system-x86_64")
    context = certificate_context(certificates, verify_client=True)
    folder = tmp_path / "with,comma"
    folder.mkdir()
    path = folder / "nbd.sock"
    quit_it = '{"execute":"qmp_capabilities"}\n{"execute":"query-named-block-nodes"}\n'
    for tls in (None, context):
        options: list[str | Path] = ["--socket", path]
        if tls is not None:
            options += ["--tls-certificates", certificates]
        ((program, *words),) = printed("qemu", "IMAGE", *options)
        machine = ["-nodefaults", "-display", "none", "-S", "-qmp", "stdio", "-accel", "tcg"]
        with serving(disk, folder, tls=tls):
            done = subprocess.run(
                [program, *machine, *words],
                input=quit_it + '{"execute":"quit"}\n',
                capture_output=True,
                text=True,
                check=False,
            )
        assert done.returncode == 0, done.stderr
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        (nodes,) = [each["return"] for each in answers if isinstance(each.get("return"), list)]
        (node,) = [each for each in nodes if each["node-name"] == "image"]
        assert node["ro"]
        assert node["image"]["virtual-size"] == disk.size_bytes


def test_printed_lines_give_a_disk_by_vhost_user(disk: DiskView, tmp_path: Path) -> None:
    tools.require_tool("qemu-storage-daemon", "qemu-system-x86_64")
    daemon, machine = printed("qemu-vhost-user", "IMAGE", "--socket", tmp_path / "nbd.sock")
    with (
        serving(disk, tmp_path),
        subprocess.Popen(
            [*daemon, "--chardev", "stdio,id=c", "--monitor", "chardev=c"],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            # It greets when all that was asked for is there.
            assert "QMP" in process.stdout.readline()
            command = [*machine, "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"]
            done = subprocess.run(
                command,
                cwd=tmp_path,
                input='{"execute":"qmp_capabilities"}\n{"execute":"quit"}\n',
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            # Told to end while its user goes away, it may stay.
            process.kill()
    assert done.returncode == 0, done.stderr


def test_every_machine_has_its_lines() -> None:
    address = DiskAddress(host="::1", port=10809, name="disk")
    for machine in MACHINES:
        lines = machine_commands(machine, address, "registry.example/app:1")
        if machine != "firecracker":
            assert "reconnect-delay=60" in lines
            assert "read-only=on" in lines
            assert "server.host=::1,server.port=10809,export=disk" in lines
    assert "lamina export registry.example/app:1 image.img" in machine_commands(
        "firecracker", address, "registry.example/app:1"
    )
