"""``lamina snapshotter install`` as containerd itself understands the file, of each version that is
here.
"""

from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.peers import find_peer
from tests.support.shell import Shell
from tests.support.tools import find_program

pytestmark = pytest.mark.tools

pytest.importorskip("msgspec")

CRI = {2: ("io.containerd.grpc.v1.cri", "containerd"), 3: ("io.containerd.cri.v1.images",)}
OWN = """version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.example/pause:3.9"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native" # as it was
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2\""""


def _programs() -> dict[str, str]:
    found = {
        "Debian's": find_program("containerd"),
        "2.x": find_peer("containerd-2/containerd"),
    }
    return {name: str(path) for name, path in found.items() if path is not None}


PROGRAMS = _programs()


@pytest.fixture(params=PROGRAMS or [pytest.param("", marks=pytest.mark.skip("no containerd"))])
def program(request: pytest.FixtureRequest) -> str:
    return PROGRAMS[request.param]


def _dump(program: str, *words: str) -> str:
    command = [program, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def _understood(program: str, path: Path) -> dict[str, Any]:
    return tomllib.loads(_dump(program, "--config", str(path), "config", "dump"))


def _plugin(config: dict[str, Any], names: Sequence[str]) -> Any:
    found = config["plugins"]
    for name in names:
        found = found[name]
    return found


def _texts(program: str) -> dict[str, str | None]:
    return {
        "none": None,
        "empty": "",
        "default": _dump(program, "config", "default"),
        "own": OWN,
        "without runtimes": OWN.partition(
            '    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes'
        )[0],
    }


@pytest.mark.parametrize("kind", ["none", "empty", "default", "own", "without runtimes"])
def test_a_file_has_the_settings_and_is_given_back(program: str, kind: str, tmp_path: Path) -> None:
    lamina, path = Shell(tmp_path), tmp_path / "config.toml"
    text = _texts(program)[kind]
    if text is not None:
        path.write_bytes(text.encode())
        path.chmod(0o640)
    words = ("snapshotter", "install", "--containerd", "config.toml")
    words = (*words, "--containerd-program", program, "--socket", "/run/x/l.sock")
    for _ in range(2):  # The second time changes nothing.
        lamina(*words)
    config = _understood(program, path)
    assert config["proxy_plugins"]["lamina"]["address"] == "/run/x/l.sock"
    cri = _plugin(config, CRI[min(config["version"], 3)])
    assert cri["snapshotter"] == "lamina"
    if config["version"] == 2:
        assert cri["disable_snapshot_annotations"] is False
    else:
        unpacked = _plugin(config, ("io.containerd.transfer.v1.local", "unpack_config"))
        assert [each["snapshotter"] for each in unpacked] == ["lamina", "overlayfs"]
    if kind in ("own", "without runtimes"):
        assert "registry.example/pause:3.9" in path.read_text()
        assert path.stat().st_mode & 0o777 == 0o640
    lamina(*words, "--undo")
    if text is None:
        assert not path.exists()
    else:
        assert path.read_bytes() == text.encode()
    assert {each.name for each in tmp_path.iterdir()} <= {"config.toml", "store"}


def test_what_containerd_understands_otherwise_is_not_put_in_place(
    program: str, tmp_path: Path
) -> None:
    """An import that has the plugin too wins over the file that imports it."""
    lamina, path = Shell(tmp_path), tmp_path / "config.toml"
    (tmp_path / "other.toml").write_text(
        'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd]\nsnapshotter = "native"\n'
        '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]\n'
        'runtime_type = "io.containerd.runc.v2"\n'
    )
    text = f'version = 2\nimports = ["{tmp_path}/other.toml"]\n'
    path.write_text(text)
    words = ("snapshotter", "install", "--containerd", "config.toml")
    said = lamina(*words, "--containerd-program", program, code=1).stderr
    assert "containerd understands plugins." in said
    assert "snapshotter as 'native'" in said
    assert path.read_text() == text


def test_what_cannot_be_installed(tmp_path: Path) -> None:
    lamina, path = Shell(tmp_path), tmp_path / "config.toml"
    words = ("snapshotter", "install", "--containerd", "config.toml")
    said = lamina(*words, "--containerd-program", "/nowhere/containerd", code=7).stderr
    assert "--containerd-program" in said
    said = lamina("snapshotter", "--undo", code=2).stderr
    assert "--undo is of `lamina snapshotter install`" in said
    if "Debian's" in PROGRAMS:
        path.write_text("[grpc]\naddress = '/run/c.sock'\n")
        said = lamina(*words, "--containerd-program", PROGRAMS["Debian's"], code=9).stderr
        assert "containerd config migrate" in said
    assert lamina(*words, "--undo").stderr.endswith("has nothing that was installed\n")
