"""Conversions that a kill, a full disk or a registry ends: nothing partial has a valid name, and
what is left goes away.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lamina.build.convert import convert
from lamina.build.options import ConvertOptions
from lamina.errors import Error, FetchError, StoreError
from lamina.http.client_options import ClientOptions
from lamina.oci.reference import parse_reference
from tests.support import fake_registry as fake
from tests.support.fake_registry import FakeRegistry
from tests.support.layers import Item, oci_layout

MIB = 1 << 20
ONE_DAY_S = 86_400


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of one layer of 24 MiB of noise, and a small one over it."""
    layout = tmp_path_factory.mktemp("source") / "oci"
    items = [Item(str(n), hashlib.shake_256(b"%d" % n).digest(2 * MIB)) for n in range(12)]
    oci_layout(layout, [items, [Item("last", b"x")]], "none")
    return layout


def run(source: Path, destination: str, **wanted: object) -> None:
    names = [parse_reference(name) for name in (f"oci:{source}:latest", destination)]
    client = ClientOptions(timeout_s=30, deadline_s=60, push_chunk_bytes=MIB)
    convert(names[0], names[1], ConvertOptions(**wanted), destination_client=client)  # type: ignore[arg-type]


def blobs_are_whole(layout: Path) -> bool:
    """Whether every blob of a layout has the digest that it is named by."""
    blobs = list((layout / "blobs" / "sha256").iterdir())
    return all(hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name for blob in blobs)


def names(layout: Path) -> list[object]:
    found: list[object] = json.loads((layout / "index.json").read_bytes())["manifests"]
    return found


def temporary(layout: Path) -> list[Path]:
    return [path for path in layout.glob("*") if path.name not in {"blobs", "oci-layout"}]


def test_what_a_killed_conversion_leaves_goes_at_the_next(source: Path, tmp_path: Path) -> None:
    native = tmp_path / "native"
    command = [sys.executable, "-m", "lamina", "convert", "--level", "19"]
    command += [f"oci:{source}:latest", f"oci:{native}:latest"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, **quiet) as process:  # type: ignore[call-overload]
        while not begun(native):
            assert process.poll() is None, "it was over before it could be killed"
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert names(native) == []
    assert blobs_are_whole(native)
    left = [path for path in temporary(native) if path.name != "index.json"]
    assert left
    for path in left:
        # Young ones may be those of a writer that has not locked its file yet.
        os.utime(path, (time.time() - ONE_DAY_S,) * 2)
    run(source, f"oci:{native}:latest")
    assert [path.name for path in temporary(native)] == ["index.json"]
    assert len(names(native)) == 1
    assert blobs_are_whole(native)


def begun(native: Path) -> bool:
    """Whether some of a blob is written, and none of its name is there."""
    if not (native / "index.json").exists():
        return False
    return any(size_of(path) > MIB for path in temporary(native))


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@pytest.mark.skipif(os.getuid() != 0, reason="mounts a small tmpfs")
@pytest.mark.parametrize("is_work_folder", [False, True], ids=["destination", "work folder"])
def test_a_full_disk(source: Path, tmp_path: Path, *, is_work_folder: bool) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "small", str(small)], check=True)
    try:
        with fake.fake_registry() as registry, pytest.raises(StoreError):
            if is_work_folder:
                run(source, f"docker://{registry.host}/a:latest", work_dir=str(small))
            else:
                run(source, f"oci:{small}/native:latest")
        if is_work_folder:
            assert list(small.iterdir()) == []
            assert nothing_in(registry)
        else:
            native = small / "native"
            assert names(native) == []
            assert blobs_are_whole(native)
            assert [path.name for path in temporary(native)] == ["index.json"]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def nothing_in(registry: FakeRegistry) -> bool:
    whole = all(f"sha256:{hashlib.sha256(d).hexdigest()}" == n for n, d in registry.blobs.items())
    return whole and not registry.manifests and not registry.uploads


def forget(exchange: fake.Exchange) -> bool:
    exchange.registry.uploads.clear()
    return False


def test_a_registry_that_drops_the_upload(source: Path, tmp_path: Path) -> None:
    with fake.fake_registry() as registry:
        registry.rule("PATCH", "", forget, times=3)
        run(source, f"docker://{registry.host}/a:latest", work_dir=str(tmp_path))
        once = dict(registry.blobs)
    with fake.fake_registry() as registry:
        registry.rule("PATCH", "", forget, times=999)
        registry.rule("PUT", "uploads", fake.status(404), times=999)
        with pytest.raises(FetchError):
            run(source, f"docker://{registry.host}/a:latest", work_dir=str(tmp_path))
        assert nothing_in(registry)
        # The next run goes through, with the same result.
        registry.rules.clear()
        run(source, f"docker://{registry.host}/a:latest", work_dir=str(tmp_path))
        assert registry.blobs == once
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_turns_out_wrong_leaves_no_upload(source: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    oci_layout(damaged, [[Item("file", bytes(range(256)) * (16 * MIB // 256))]], "none")
    large = max((damaged / "blobs" / "sha256").iterdir(), key=size_of)
    data = bytearray(large.read_bytes())
    data[-2000] ^= 1
    large.write_bytes(data)
    with fake.fake_registry() as registry:
        with pytest.raises(Error):
            run(damaged, f"docker://{registry.host}/a:latest")
        assert nothing_in(registry)
