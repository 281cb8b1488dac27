"""The options of ``lamina run`` that docker users know."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamina.cli.container_options import container_options
from lamina.cli.container_values import (
    container_path,
    limit,
    read_env_file,
    variable,
    volume,
)
from lamina.cli.dispatch import verb_parser
from lamina.cli.verbs import find_verb
from lamina.errors import NotFoundError, UsageError
from lamina.serve.container_options import ContainerOptions, MemoryFolder, Volume


def options(*arguments: str) -> ContainerOptions:
    verb = find_verb("run")
    assert verb is not None
    return container_options(verb_parser(verb).parse([*arguments, "image", "command", "-x"]))


def test_nothing_given() -> None:
    assert options() == ContainerOptions(command=("command", "-x"))


def test_everything_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "env").write_text("# comment\n\n  A=file\nB=file\nPASSED\nABSENT\n")
    monkeypatch.setenv("PASSED", "on")
    monkeypatch.delenv("ABSENT", raising=False)
    found = options(
        *(
            "-it",
            "--entrypoint",
            "/init",
            "-e",
            "A=1",
            "-eC",
            "-e",
            "PASSED",
            "--env-file",
            f"{tmp_path}/env",
        ),
        *("-w", "/work", "-u", "app:video", "-v", f"{tmp_path}:/data:ro", "--tmpfs", "/scratch/"),
        *("--network", "none", "--hostname", "box", "--read-only", "--cap-add", "NET_ADMIN"),
        *("--cap-drop", "ALL", "--ulimit", "nofile=10:20"),
    )
    assert found == ContainerOptions(
        command=("command", "-x"),
        entrypoint="/init",
        env=(("A", "file"), ("B", "file"), ("PASSED", "on"), ("A", "1"), ("PASSED", "on")),
        workdir="/work",
        user="app:video",
        hostname="box",
        network="none",
        volumes=(Volume(str(tmp_path), "/data", read_only=True),),
        tmpfs=(MemoryFolder("/scratch"),),
        terminal=True,
        interactive=True,
        read_only=True,
        capabilities_added=("NET_ADMIN",),
        capabilities_dropped=("ALL",),
        rlimits=(("RLIMIT_NOFILE", 10, 20),),
    )


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "x=y")
    assert list(variable("A=")) == [("A", "")]
    assert list(variable("A=b=c")) == [("A", "b=c")]
    assert list(variable("HERE")) == [("HERE", "x=y")]
    with pytest.raises(UsageError, match="names no variable"):
        list(variable("=x"))


def test_env_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="missing"):
        list(read_env_file(str(tmp_path / "missing")))


def test_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert volume("./here:/x") == Volume(str(tmp_path / "here"), "/x")
    assert volume(".:/x/:ro") == Volume(str(tmp_path), "/x", read_only=True)
    assert volume("/:/host:rw") == Volume("/", "/host")


@pytest.mark.parametrize(
    "text", ["", "x", "/a", "/a:", ":/a", "/:/x:zz", "/:/x:ro:y", "/:x", "/:/", "/:/../x"]
)
def test_malformed_volumes(text: str) -> None:
    with pytest.raises(UsageError):
        volume(text)


def test_named_volumes_do_not_exist() -> None:
    with pytest.raises(UsageError, match="no named volumes") as caught:
        volume("data:/data")
    assert caught.value.hint == "write ./data for a folder here"


def test_volume_of_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        volume(f"{tmp_path}/missing:/x")


def test_container_paths() -> None:
    assert container_path("//a/./b/") == "/a/b"
    for text in ("a", "", "/", "/.", "/a/../b"):
        with pytest.raises(UsageError):
            container_path(text)


def test_limits() -> None:
    assert limit("nofile=1024:4096") == ("RLIMIT_NOFILE", 1024, 4096)
    assert limit("core=0") == ("RLIMIT_CORE", 0, 0)
    assert limit("memlock=-1") == ("RLIMIT_MEMLOCK", (1 << 64) - 1, (1 << 64) - 1)


@pytest.mark.parametrize(
    "text",
    ["", "nofile", "nofile=", "nofile=x", "what=1", "nofile=2:1", "nofile=1:2:3", "nofile=-2"],
)
def test_malformed_limits(text: str) -> None:
    with pytest.raises(UsageError):
        limit(text)
