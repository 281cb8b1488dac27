"""A lazily served disk with its hash tree, which is found beside the image and is the right one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lamina.cli.dispatch import run_command
from tests.support import tools
from tests.support.native_images import push_image
from tests.support.nbd_disk import disk_image, run
from tests.support.registry_server import RegistryServer

pytestmark = pytest.mark.tools


@pytest.fixture
def reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LAMINA_STORE", str(tmp_path / "store"))
    push_image(disk_image(), tmp_path / "layout")
    return f"oci:{tmp_path}/layout:latest"


def export(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    capfd.readouterr()
    assert run_command(["export", "--json", *map(str, arguments)]) == 0, capfd.readouterr().err
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


@contextmanager
def serving(reference: str, socket: Path, *options: str | Path) -> Iterator[dict[str, Any]]:
    """What the server told of the disk."""
    command: list[str | Path] = [sys.executable, "-m", "lamina", "serve", "nbd", "--json"]
    command += ["--store", socket.with_name("lazy"), "--socket", socket, *options, reference]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
        finally:
            process.terminate()
    assert process.returncode == 0


def refused(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    capfd.readouterr()
    code = run_command(["serve", "nbd", *map(str, arguments)])
    return code, capfd.readouterr().err


def test_a_tree_beside_the_image_is_served_behind_its_disk(
    reference: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    nbdcopy, veritysetup = tools.require_tool("nbdcopy", "veritysetup")
    options = ["--verity", "veritysetup", "--salt", "5a17", "--attach"]
    made = export(capfd, *options, reference, tmp_path / "disk")
    with serving(reference, tmp_path / "socket", "--verity") as told:
        run(nbdcopy, told["uri"], tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "disk").read_bytes()
    assert (told["root_hash"], told["hash_offset"]) == (made["root_hash"], made["hash_offset"])
    assert told["table"] == made["table"].replace("DATA", "DISK").replace("HASH", "DISK")
    offset = f"--hash-offset={told['hash_offset']}"
    copy = tmp_path / "copy"
    run(veritysetup, "verify", copy, copy, told["root_hash"], offset)


def test_a_tree_in_a_file_is_served_if_it_is_of_the_root(
    reference: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (nbdcopy,) = tools.require_tool("nbdcopy")
    tree = tmp_path / "tree"
    options = ["--verity", "veritysetup", "--hash-file", tree]
    made = export(capfd, *options, reference, tmp_path / "disk")
    root = made["root_hash"]
    given = ["--hash-file", tree, "--root-hash", root]
    with serving(reference, tmp_path / "socket", *given) as told:
        run(nbdcopy, told["uri"], tmp_path / "copy")
    expected = (tmp_path / "disk").read_bytes() + tree.read_bytes()
    assert (tmp_path / "copy").read_bytes() == expected
    socket = ["--socket", tmp_path / "other"]
    given[-1] = "00" * 32
    code, message = refused(capfd, *socket, *given, reference)
    assert code != 0
    assert f"the hash tree has the root {root}" in message
    tree.write_bytes(tree.read_bytes()[:-1])
    code, message = refused(capfd, *socket, "--hash-file", tree, reference)
    assert code != 0
    assert "a hash tree has" in message
    assert not (tmp_path / "other").exists()


def test_only_the_tree_of_the_signed_root_is_served(
    registry: RegistryServer,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LAMINA_STORE", str(tmp_path / "store"))
    (nbdcopy,) = tools.require_tool("nbdcopy")
    push_image(disk_image(), tmp_path / "layout")
    image = f"{registry.host}/signed-disk:1"
    for command in (
        ["copy", f"oci:{tmp_path}/layout:latest", image],
        ["key", "generate", str(tmp_path / "team")],
    ):
        monkeypatch.setenv("COSIGN_PASSWORD", "a passphrase")
        assert run_command(command) == 0, capfd.readouterr().err
    attach = ["--verity", "veritysetup", "--attach"]
    signed = export(capfd, *attach, image, tmp_path / "disk")
    sign = ["sign", "--key", str(tmp_path / "team.key"), "--root-hash", signed["root_hash"], image]
    # Whoever reads a passphrase forgets it.
    monkeypatch.setenv("COSIGN_PASSWORD", "a passphrase")
    assert run_command(sign) == 0, capfd.readouterr().err
    # Whoever may write to the registry attaches another tree, which is listed last.
    export(capfd, *attach, "--salt", "00", image, tmp_path / "other")
    policy = tmp_path / "policy.json"
    requirement = {"type": "sigstoreSigned", "keyPath": str(tmp_path / "team.pub")}
    policy.write_text(json.dumps({"default": [requirement]}))
    demand = ["--policy", policy, "--verity"]
    with serving(image, tmp_path / "socket", *demand) as told:
        run(nbdcopy, told["uri"], tmp_path / "copy")
    assert told["root_hash"] == signed["root_hash"]
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "disk").read_bytes()
    given = ["--root-hash", "00" * 32, "--socket", tmp_path / "x"]
    code, message = refused(capfd, *demand, *given, image)
    assert code != 0
    assert "states the root hash" in message


def test_an_image_without_a_tree_is_told_so(
    reference: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, message = refused(capfd, "--socket", tmp_path / "socket", "--verity", reference)
    assert code == 7
    assert "no hash tree is attached" in message
