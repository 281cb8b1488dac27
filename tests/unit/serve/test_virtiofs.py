"""A share: which images are where in it, and how virtiofsd and virtual machines are told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamina.cli.dispatch import run_command
from lamina.cli.virtiofs_serving import named_images
from lamina.errors import UsageError
from lamina.serve.runtime_folder import state_directory
from lamina.serve.virtiofs import VirtiofsServer, command_line, remove_left_behind


def program(path: Path, help_text: str) -> str:
    path.write_text(f"#!/bin/sh\necho '{help_text}'\n")
    path.chmod(0o755)
    return str(path)


def test_images_have_folders_of_their_names() -> None:
    assert named_images(["host/app:1"]) == {"": "host/app:1"}
    assert named_images(["a=host/app:1", "b=oci:x:y"]) == {"a": "host/app:1", "b": "oci:x:y"}


@pytest.mark.parametrize(
    "texts", [["a", "b"], ["a=x", "a=y"], ["../a=x"], ["..=x"], ["=x"], ["a="]]
)
def test_what_is_no_folder_of_the_share_is_refused(texts: list[str]) -> None:
    with pytest.raises(UsageError):
        named_images(texts)


def test_each_virtiofsd_is_told_in_its_own_words(tmp_path: Path) -> None:
    in_c = command_line(program(tmp_path / "c", "-o source=PATH"), "s", "/folder")
    assert in_c[2:] == [
        "-o",
        "source=/folder,xattr,cache=auto,sandbox=namespace,announce_submounts",
    ]
    in_rust = command_line(program(tmp_path / "rust", "--shared-dir <DIR>"), "s", "/folder")
    assert "--shared-dir=/folder" in in_rust
    with pytest.raises(UsageError):
        command_line(str(tmp_path / "c"), "s", "/a,b")


def test_a_file_in_the_place_of_the_socket_stays(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UsageError, match="is no socket"):
        VirtiofsServer(["false"], str(tmp_path / "notes"))
    assert (tmp_path / "notes").read_text() == "mine"


def test_the_folder_of_a_killed_process_with_our_number_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container it has the same number every time."""
    monkeypatch.setenv("LAMINA_RUNTIME", str(tmp_path / "run"))
    root = state_directory() / f"share-{os.getpid()}"
    (root / "app").mkdir(parents=True)
    other = state_directory() / f"share-{os.getppid()}"
    other.mkdir()
    remove_left_behind()
    assert not root.exists()
    assert other.exists()


def test_the_lines_of_virtual_machines_are_printed(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["serve", "virtiofs", "--socket", "/run/share.sock", "--print-command"]
    assert run_command([*words, "qemu", "host/app"]) == 0
    assert "vhost-user-fs-pci,chardev=share,tag=image" in capfd.readouterr().out
    assert run_command([*words, "cloud-hypervisor", "host/app"]) == 0
    assert "--fs tag=image,socket=/run/share.sock" in capfd.readouterr().out
    assert run_command([*words, "firecracker", "host/app"]) == 2
    assert run_command(["serve", "virtiofs", "host/app"]) == 2
    assert run_command(["serve", "virtiofs", "--listen", "[::1]:0", "host/app"]) == 2
