"""``lamina run`` of an image in a registry: lazily, with each device, and with damage."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.cli.self_tests import write_layout
from tests.support.containers import small_root
from tests.support.registry_server import RegistryServer
from tests.support.tools import require_kernel, require_root, require_tool
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.kernel, pytest.mark.tools]

ROOT = Path(__file__).parents[2]
DEVICES = ("auto", "fanotify", "fuse-blob", "fuse")
BALLAST_BYTES = 8 << 20


def noise(size_bytes: int) -> bytes:
    return hashlib.shake_128(b"ballast").digest(size_bytes)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI image of busybox, users, and a file that nobody needs."""
    require_root()
    require_tool("runc")
    folder = tmp_path_factory.mktemp("image")
    root = small_root(folder / "root")
    (root / "ballast").write_bytes(noise(BALLAST_BYTES))
    with tarfile.open(folder / "layer.tar", "w") as archive:
        archive.add(root, ".")
    plain = (folder / "layer.tar").read_bytes()
    config = {"Entrypoint": ["/bin/sh", "-c"], "Cmd": ["echo from the image"], "User": "app"}
    write_layout(folder / "layout", "small", plain, config)
    return folder / "layout"


@pytest.fixture
def image(layout: Path, registry: RegistryServer, request: pytest.FixtureRequest) -> str:
    """The image, converted into the registry under a name of the test's own."""
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    reference = registry.reference(f"run/{name}:small")
    lamina("convert", f"oci:{layout}:small", reference)
    return reference


def lamina(*arguments: str, store: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    if store is not None:
        environment["LAMINA_STORE"] = str(store)
    command = [sys.executable, "-m", "lamina", *arguments]
    return subprocess.run(
        command, capture_output=True, env=environment, timeout=120, stdin=subprocess.DEVNULL
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "store"
    assert not (tmp_path / "store/containers").exists()


def resident_bytes(store: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in store.glob("blobs/*.data"))


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if name == "fanotify":
        require_kernel(6, 14, "fanotify pre-content events")
    if name == "fuse-blob":
        require_kernel(6, 12, "file-backed EROFS")
    return name


def test_lazily(image: str, store: Path, device: str) -> None:
    done = lamina("run", "--rm", "--device", device, image, store=store)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"from the image\n", b"")
    assert 0 < resident_bytes(store) < BALLAST_BYTES
    again = lamina("run", "--rm", "--device", device, image, "id -un; exit 9", store=store)
    assert (again.returncode, again.stdout, again.stderr) == (9, b"app\n", b"")


def test_all_of_it(image: str, store: Path, device: str) -> None:
    done = lamina("run", "--rm", "--device", device, image, "sha256sum < /ballast", store=store)
    assert done.stdout.split()[0].decode() == hashlib.sha256(noise(BALLAST_BYTES)).hexdigest()
    assert resident_bytes(store) >= BALLAST_BYTES


def test_plans_are_told_before_and_after(image: str, store: Path) -> None:
    for number, plan in enumerate(("lazy", "full", "auto")):
        done = lamina("run", "--rm", "--plan", plan, image, store=store)
        assert done.stdout == b"from the image\n"
        before, after = done.stderr.decode().splitlines()
        wanted = "lazy" if plan == "auto" else plan
        assert before.startswith(f"lamina: plan: {wanted}, ")
        assert after.startswith(f"lamina: plan: {wanted} came to ")
        assert (resident_bytes(store) >= BALLAST_BYTES) == (number > 0)
    assert "nothing to fetch" in before
    assert " for 0 B in 0 requests" in after


def test_the_rest_arrives_in_the_background(image: str, store: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "LAMINA_STORE": str(store)}
    command = [sys.executable, "-m", "lamina", "run", "--rm", "-i", "--complete", image]
    with subprocess.Popen(
        [*command, "read line"], stdin=subprocess.PIPE, env=environment
    ) as process:
        wait_until(lambda: resident_bytes(store) >= BALLAST_BYTES, "the rest")
        process.communicate(b"\n", timeout=120)
    assert process.returncode == 0


def damage(registry: RegistryServer, image: str, store: Path) -> str:
    """Flip a byte in the middle of the data blob; return the blob's id."""
    facts = json.loads(lamina("inspect", "--json", image, store=store).stdout)
    blob_id = str(facts["blobs"][0]["id"])
    path = registry.blob_path(f"sha256:{blob_id}")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    assert data[middle : middle + 64] in noise(BALLAST_BYTES)
    data[middle] ^= 1
    path.write_bytes(data)
    return blob_id


def test_damage_is_an_error_and_a_log_line(
    image: str, store: Path, device: str, registry: RegistryServer
) -> None:
    blob_id = damage(registry, image, store)
    before = registry.blob_path(f"sha256:{blob_id}").read_bytes()
    try:
        done = lamina(
            "run",
            "--rm",
            "--device",
            device,
            image,
            "cat /ballast >/dev/null; echo end $?",
            store=store,
        )
    finally:
        data = bytearray(before)
        data[len(data) // 2] ^= 1
        registry.blob_path(f"sha256:{blob_id}").write_bytes(data)
    assert done.stdout == b"end 1\n"
    assert b"I/O error" in done.stderr or b"Input/output error" in done.stderr
    log = next(line for line in done.stderr.decode().splitlines() if line.startswith("lamina: "))
    assert blob_id in log
    assert "chunk" in log
    assert "digest" in log


def test_a_registry_that_is_not_there(store: Path, layout: Path) -> None:
    done = lamina("run", "--rm", "docker://127.0.0.1:1/x", store=store)
    assert done.returncode == 125
    assert done.stderr.startswith(b"lamina: ")
    assert b"127.0.0.1:1" in done.stderr


def test_an_ordinary_image(layout: Path, store: Path) -> None:
    done = lamina("run", "--rm", f"oci:{layout}:small", store=store)
    assert done.returncode == 125
    assert b"ordinary OCI image" in done.stderr
    assert b"lamina convert" in done.stderr
