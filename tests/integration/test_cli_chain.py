"""The verbs in a row, as a user types them: one small image on OCI layouts, JSON read back."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lamina.cli.self_tests import tiny_layout

ROOT = Path(__file__).parents[2]


class Shell:
    """Runs ``lamina`` in a folder with a node store of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "src"),
            "LAMINA_STORE": str(folder / "store"),
        }

    def __call__(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [sys.executable, "-m", "lamina", *arguments],
            capture_output=True,
            cwd=self.folder,
            env=self.environment,
            timeout=120,
        )
        assert done.returncode == code, done.stderr.decode()
        return done

    def json(self, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
        """The objects that ``--json`` prints."""
        return [
            json.loads(line) for line in self(*arguments, "--json", code=code).stdout.splitlines()
        ]


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {}


@pytest.fixture(scope="module")
def lamina(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> Shell:
    folder = tmp_path_factory.mktemp("chain")
    files.update(tiny_layout(folder / "source"))
    shell = Shell(folder)
    shell("-q", "convert", "oci:source:tiny", "oci:native:tiny")
    return shell


def test_convert_reports(lamina: Shell, files: dict[str, bytes]) -> None:
    (report,) = lamina.json("convert", "oci:source:tiny", "oci:again:tiny", "--compressor", "lz4")
    (image,) = report["images"]
    (layer,) = image["layers"]
    assert report["reference"] == "oci:again:tiny"
    assert report["digest"] == image["manifest_digest"]
    assert layer["plain_bytes"] == sum(map(len, files.values()))
    assert layer["entries"] == 5
    assert image["image_bytes"] == layer["blob_bytes"] + image["bootstrap_layer_bytes"]


def test_converting_twice_gives_the_same(lamina: Shell) -> None:
    digests = {
        lamina.json("convert", "oci:source:tiny", f"oci:twice:{tag}")[0]["digest"] for tag in "ab"
    }
    assert len(digests) == 1


def test_convert_tells_a_person(lamina: Shell) -> None:
    done = lamina("convert", "oci:source:tiny", "oci:person:tiny")
    assert b"layer 0" in done.stdout
    assert b"sha256:" in done.stdout
    assert done.stderr == b""


def test_inspect(lamina: Shell) -> None:
    (native,) = lamina.json("inspect", "oci:native:tiny")
    assert native["kind"] == "native"
    assert native["platform"] == "linux/amd64"
    assert native["config"]["cmd"] == ["/hello"]
    assert native["tree"]["inodes"] == 6
    (blob,) = native["blobs"]
    assert blob["chunks"] >= blob["pieces"] > 0
    (source,) = lamina.json("inspect", "oci:source:tiny")
    assert source["kind"] == "oci"
    assert "tree" not in source
    assert b"native" in lamina("inspect", "oci:native:tiny").stdout
    raw = lamina("inspect", "--raw", "oci:native:tiny").stdout
    assert json.loads(raw)["schemaVersion"] == 2


def test_ls(lamina: Shell, files: dict[str, bytes]) -> None:
    assert lamina("ls", "oci:native:tiny").stdout.split() == [b"big", b"empty", b"etc", b"link"]
    assert lamina("ls", "oci:native:tiny", "/etc").stdout == b"hello\n"
    assert lamina("ls", "oci:source:tiny", "etc").stdout == b"hello\n"
    entries = lamina.json("ls", "-R", "oci:native:tiny")
    assert [entry["path"] for entry in entries] == [
        "/",
        "/big",
        "/empty",
        "/etc",
        "/etc/hello",
        "/link",
    ]
    by_path = {entry["path"]: entry for entry in entries}
    assert by_path["/big"]["size"] == len(files["big"])
    assert by_path["/link"]["target"] == "etc/hello"
    assert by_path["/etc"]["mode"] == "0755"
    long = lamina("ls", "-l", "oci:native:tiny").stdout.decode().splitlines()
    assert long[3].startswith("lrwxrwxrwx")
    assert long[3].endswith(" link -> etc/hello")


def test_cat(lamina: Shell, files: dict[str, bytes]) -> None:
    done = lamina("cat", "oci:native:tiny", "/big", "link", "/empty")
    assert done.stdout == files["big"] + files["etc/hello"]
    (entry,) = lamina.json("cat", "oci:source:tiny", "/etc/hello")
    assert base64.b64decode(entry["base64"]) == files["etc/hello"]


def test_stat(lamina: Shell) -> None:
    link, hello = lamina.json("stat", "oci:native:tiny", "/link", "/etc/hello")
    assert (link["type"], link["target"]) == ("symlink", "etc/hello")
    assert (hello["type"], hello["mode"], hello["xattrs"]) == ("file", "0644", {})
    (followed,) = lamina.json("stat", "-L", "oci:native:tiny", "/link")
    assert followed == hello
    assert b"/link -> etc/hello" in lamina("stat", "oci:native:tiny", "/link").stdout


def test_check_one(lamina: Shell, files: dict[str, bytes]) -> None:
    (result,) = lamina.json("check", "oci:native:tiny")
    assert result["ok"] is True
    (result,) = lamina.json("check", "--data", "oci:native:tiny")
    assert result["read_bytes"] == sum(map(len, files.values()))


def test_check_two(lamina: Shell) -> None:
    assert lamina("check", "oci:source:tiny", "oci:native:tiny").stdout == b"the trees are equal\n"
    assert lamina.json("check", "oci:native:tiny", "oci:source:tiny") == [
        {"ok": True, "differences": 0}
    ]


def test_check_finds_a_difference(lamina: Shell) -> None:
    lamina("unpack", "oci:native:tiny", "./changed")
    (lamina.folder / "changed/etc/hello").write_text("other")
    *differences, result, error = lamina.json("check", "oci:native:tiny", "./changed", code=11)
    assert result["ok"] is False
    assert result["differences"] == len(differences)
    assert {difference["path"] for difference in differences} >= {"/etc/hello"}
    assert error["error"]["kind"] == "DifferenceError"
    assert error["error"]["exit_code"] == 11


def test_a_flipped_byte_is_found(lamina: Shell) -> None:
    lamina("copy", "oci:native:tiny", "oci:broken:tiny")
    blobs = lamina.folder / "broken/blobs/sha256"
    (blob,) = lamina.json("inspect", "oci:broken:tiny")[0]["blobs"]
    path = blobs / blob["id"]
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    assert lamina.json("check", "oci:broken:tiny")[0]["ok"] is True
    *_, error = lamina.json("check", "--data", "oci:broken:tiny", code=4)
    assert blob["id"] in error["error"]["message"]


def test_copy(lamina: Shell) -> None:
    (report,) = lamina.json("copy", "oci:native:tiny", "oci:copied:other")
    (facts,) = lamina.json("inspect", "oci:copied:other")
    assert report["digest"] == facts["digest"]
    assert report["blobs"] == 3
    lamina("copy", "oci:native:tiny", "oci-archive:copied.tar:tiny")
    (archived,) = lamina.json("inspect", "oci-archive:copied.tar:tiny")
    assert archived["digest"] == facts["digest"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_who_is_told_to_end_tidies_up(
    lamina: Shell, tmp_path: Path, number: signal.Signals
) -> None:
    code = f"""
import os, sys, time
from lamina.registry import layout
told = []
def interrupted(*_):
    told.append(1)
    if len(told) == 1 or {int(number)} == 15:
        os.kill(os.getpid(), {int(number)})
    time.sleep(0.5)
    raise OSError(5, "the source is gone")
layout.copy_verified = interrupted
from lamina.cli import entry
entry()
"""
    for destination in (f"oci-archive:{tmp_path}/image.tar", f"oci:{tmp_path}/layout"):
        done = subprocess.run(
            [sys.executable, "-c", code, "copy", "oci:native:tiny", destination],
            cwd=lamina.folder,
            env=lamina.environment,
            timeout=60,
        )
        assert done.returncode == 128 + number
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
    assert not (tmp_path / "image.tar").exists()


def test_unpack_to_a_folder(lamina: Shell, files: dict[str, bytes]) -> None:
    (report,) = lamina.json("unpack", "oci:native:tiny", "./unpacked")
    assert report["destination"] == "./unpacked"
    for name, data in files.items():
        assert (lamina.folder / "unpacked" / name).read_bytes() == data
    assert (lamina.folder / "unpacked/link").readlink() == Path("etc/hello")
    if os.geteuid() == 0:
        lamina("check", "oci:native:tiny", "./unpacked")


def test_unpack_to_an_image(lamina: Shell) -> None:
    (report,) = lamina.json("unpack", "oci:native:tiny", "oci:back:tiny")
    (facts,) = lamina.json("inspect", "oci:back:tiny")
    assert (facts["kind"], facts["digest"]) == ("oci", report["digest"])
    assert facts["config"]["cmd"] == ["/hello"]
    lamina("check", "oci:back:tiny", "oci:source:tiny")


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("ls", "oci:nowhere:tiny"), 7, "nowhere"),
        (("ls", "oci:native:absent"), 7, "absent"),
        (("ls", "oci:native:tiny", "/absent"), 7, "/absent"),
        (("cat", "oci:native:tiny", "/etc"), 2, "/etc"),
        (("ls", "./absent"), 7, "./absent"),
        (("ls", "UPPER/case:x:y"), 2, "UPPER"),
        (("convert", "oci:native:tiny", "oci:x:y"), 2, "native"),
        (("convert", "oci:source:tiny", "oci:x:y", "--chunk-size", "3K"), 2, "3072"),
        (("mount", "oci:source:tiny", "."), 9, "ordinary OCI image"),
        (("check", "./unpacked"), 2, "folder"),
        (("umount", "./absent"), 7, "absent"),
    ],
)
def test_errors_are_clear(lamina: Shell, arguments: tuple[str, ...], code: int, word: str) -> None:
    done = lamina(*arguments, code=code)
    first = done.stderr.decode().splitlines()[0]
    assert first.startswith("lamina: ")
    assert word in first
    assert "Traceback" not in done.stderr.decode()
    *_, error = lamina.json(*arguments, code=code)
    assert error["error"]["exit_code"] == code


def test_a_reader_that_goes_away(lamina: Shell) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "lamina", "cat", "oci:native:tiny", "/big"],
        cwd=lamina.folder,
        env=lamina.environment,
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_self_test(lamina: Shell) -> None:
    (result,) = lamina.json("self-test")
    assert result["ok"] is True
    assert {answer["name"] for answer in result["answers"]} >= {"codecs", "image round trip"}
    features = {feature["name"]: feature for feature in result["features"]}
    assert features.keys() >= {"erofs", "/dev/fuse", "runc"}
    tried = features["failed reads stay failed"]
    assert tried["available"] or "root" in tried["detail"] or "Linux" in tried["detail"]
    assert lamina("self-test").stdout.count(b"ok ") >= 5


def test_a_broken_installation_fails_the_self_test(lamina: Shell, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import lamina.codec.crc32c as c\nc.crc32c = lambda data, value=0: 0\n"
    )
    environment = {**lamina.environment, "PYTHONPATH": f"{tmp_path}:{ROOT / 'src'}"}
    done = subprocess.run(
        [sys.executable, "-m", "lamina", "self-test"], capture_output=True, env=environment
    )
    assert done.returncode == 1
    assert b"WRONG checksum" in done.stdout
