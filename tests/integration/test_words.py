"""What a person reads: tables at 80 columns, progress on a terminal, hints that fit their cause."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.cli.self_tests import tiny_layout
from tests.support.registry_server import RegistryServer
from tests.support.shell import Shell

COLUMNS = 80
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def tiny(shell: Shell) -> Shell:
    tiny_layout(shell.folder / "source")
    shell("-q", "convert", "oci:source:tiny", "oci:native:tiny")
    return shell


def on_terminal(shell: Shell, *words: str) -> str:
    """What appears on a terminal of 80 columns."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    environment = {**shell.environment, "TERM": "xterm", "COLUMNS": "", "LINES": ""}
    process = subprocess.Popen(
        shell.words(*words),
        cwd=shell.folder,
        env={name: value for name, value in environment.items() if value},
        stdin=side,
        stdout=side,
        stderr=side,
    )
    os.close(side)
    said = b""
    with contextlib.suppress(OSError):
        while data := os.read(main, 65536):
            said += data
    os.close(main)
    assert process.wait(60) == 0, said.decode()
    return said.decode()


TABLES = (
    ("images",),
    ("coverage", "oci:native:tiny"),
    ("mounts",),
    ("convert", "-q", "oci:source:tiny", "oci:native:again"),
    ("ls", "-l", "oci:native:tiny", "/"),
    ("self-test",),
    ("--help",),
)


@pytest.mark.parametrize("words", TABLES, ids=lambda words: words[0])
def test_tables_fit_a_terminal(tiny: Shell, words: tuple[str, ...]) -> None:
    long = f"oci:{tiny.folder}/native:tiny"
    tiny("-q", "pull", long)
    tiny("mount", "--device", "fuse", long, "mnt")
    lines = on_terminal(tiny, *words).splitlines()
    assert lines
    # A digest that stands by itself, to be copied, is whole.
    shown = [re.sub(r"sha256:[0-9a-f]{64}", "", ESCAPE.sub("", line)) for line in lines]
    too_long = [line for line in shown if len(line) > COLUMNS]
    assert not too_long


def test_nothing_is_shortened_where_nobody_looks(tiny: Shell) -> None:
    long = f"oci:{tiny.folder}/native:tiny"
    tiny("-q", "pull", long)
    assert long in tiny("images").stdout
    assert "…" in on_terminal(tiny, "images")


def test_progress_has_totals_rate_and_time_left(tiny: Shell) -> None:
    said = ESCAPE.sub("", on_terminal(tiny, "convert", "oci:source:tiny", "oci:native:again"))
    (layer,) = json.loads(tiny("inspect", "--json", "oci:source:tiny").stdout)["layers"]
    (total,) = set(re.findall(r"read .*/(\d+\.\d) kB", said))
    assert abs(float(total) * 1000 - layer["size"]) <= 50
    # Of an image this small there may be no second moment to tell a rate by.
    assert re.search(r"read .* kB (\S+ \w+/s|\?) [-\d]+:[-\d]+:[-\d]+", said)
    assert re.search(r"pack .*/\d+\.\d kB", said)
    said = ESCAPE.sub("", on_terminal(tiny, "index", "oci:source:tiny"))
    assert f"/{total} kB" in said
    said = ESCAPE.sub("", on_terminal(tiny, "check", "--data", "oci:native:tiny"))
    assert set(re.findall(r"^(\w+) +[━╸╺]", said, re.MULTILINE)) <= {"check"}


def test_what_is_read_is_not_replaced_by_accident(tiny: Shell) -> None:
    before = tiny("inspect", "--raw", "oci:source:tiny").stdout
    refused = tiny("convert", "oci:source:tiny", "oci:source:tiny", code=2)
    assert "would be replaced" in refused.stderr
    assert "--replace" in refused.stderr
    assert tiny("inspect", "--raw", "oci:source:tiny").stdout == before
    tiny("-q", "convert", "--replace", "oci:source:tiny", "oci:source:tiny")
    assert "native" in tiny("inspect", "oci:source:tiny").stdout


def test_a_tag_of_an_index_leaves_the_reference_as_it_was(tiny: Shell) -> None:
    refused = tiny("index", "--tag", "index", "oci:source", code=2)
    assert "there would be two" in refused.stderr
    assert "oci:source:TAG" in refused.stderr
    refused = tiny("index", "--tag", "tiny", "oci:source:tiny", code=2)
    assert "but its index" in refused.stderr
    tiny("index", "--tag", "index", "oci:source:tiny")
    assert tiny("cat", "oci:source:tiny", "/etc/hello").stdout.startswith("lamina")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("ls", "app.tar"), "oci-archive:app.tar or docker-archive:app.tar"),
        (("ls", "./app.tar"), "oci-archive:./app.tar"),
        (("ls", "oci:app.tar:x"), "oci-archive:app.tar or docker-archive:app.tar"),
        (("ls", "oci-archive:source"), "oci:source"),
        (("ls", "source:tiny"), "oci:source:tiny"),
        (("ls", "nginx"), "nginx without a registry is an image of Docker Hub"),
        (("mount", "oci:native:tiny", "nowhere"), "mkdir -p"),
        (("ls", "--store", "app.tar", "oci:native:tiny"), "choose a folder with --store"),
        (("ls", "--store", "/proc/none", "oci:native:tiny"), "or correct HOME"),
        (("umount", "mnt"), "lamina mounts lists them"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_hints_fit_their_cause(tiny: Shell, words: tuple[str, ...], hint: str) -> None:
    (tiny.folder / "app.tar").touch()
    done = subprocess.run(
        tiny.words(*words),
        cwd=tiny.folder,
        env={**tiny.environment, "LAMINA_RETRY": "attempts=1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode not in (0, 70), done.stderr
    assert hint in done.stderr.partition("hint: ")[2], done.stderr


def test_a_wrong_home_is_named(tiny: Shell) -> None:
    environment = {**tiny.environment, "HOME": "/proc/none"}
    del environment["LAMINA_STORE"]
    # As somebody else than root, whose store is not at home.
    program = "import os, sys; os.geteuid = lambda: 1; import lamina.cli; lamina.cli.entry()"
    done = subprocess.run(
        [sys.executable, "-c", program, "ls", "oci:native:tiny"],
        cwd=tiny.folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "/proc/none" in done.stderr
    assert "HOME" in done.stderr.partition("hint: ")[2]


@pytest.fixture
def busy(tiny: Shell) -> Iterator[Path]:
    tiny("mount", "--device", "fuse", "oci:native:tiny", "mnt")
    with (tiny.folder / "mnt/etc/hello").open("rb"):
        yield tiny.folder / "mnt"


@pytest.mark.usefixtures("as_root")
def test_a_busy_mount_is_told_what_to_do(tiny: Shell, busy: Path) -> None:
    done = subprocess.run(
        tiny.words("umount", str(busy)), env=tiny.environment, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "--lazy" in done.stderr.partition("hint: ")[2]
    tiny("umount", "--lazy", str(busy))
    assert "detached" in tiny("mounts").stdout


@pytest.mark.tools
def test_http_asked_of_tls(tiny: Shell, registry_with_tls: RegistryServer) -> None:
    refused = tiny("ls", "--plain-http", f"docker://{registry_with_tls.host}/x:1", code=5)
    assert "leave --plain-http out" in refused.stderr
