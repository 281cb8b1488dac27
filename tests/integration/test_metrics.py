"""The pages of metrics, read as Prometheus reads them."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.cli import main
from lamina.serve.mounts import list_mounts
from tests.support.serving import is_mounted, start, write_sample
from tests.support.tools import require_root

parser = pytest.importorskip("prometheus_client.parser")

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def samples(page: str) -> Samples:
    """Return the values by name, and by sorted labels."""
    found: Samples = {}
    for family in parser.text_string_to_metric_families(page):
        assert family.documentation
        for each in family.samples:
            values = found.setdefault(each.name, {})
            labels = tuple(sorted(each.labels.items()))
            assert labels not in values
            values[labels] = each.value
    return found


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    """A mount of the sample image, made by the service."""
    require_root()
    folder = tmp_path / "image"
    write_sample(folder)
    point = tmp_path / "mnt"
    point.mkdir()
    start(folder, point, tmp_path / "store", "fuse")
    yield point
    with contextlib.suppress(OSError):
        subprocess.run(["umount", "-l", point], check=False, capture_output=True)


@pytest.mark.kernel
def test_what_the_service_tells_of_a_mount(
    mountpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for each in mountpoint.rglob("*"):
        if each.is_file():
            each.read_bytes()
    words = ("service", "metrics", "--store", str(tmp_path / "store"), "--store-budget", "1G")
    assert main(list(words)) == 0
    found = samples(capsys.readouterr().out)
    (mount,) = list_mounts()
    labels = (("image_ref", mount.record.image), ("mountpoint", str(mountpoint)))
    assert found["lamina_service_up"] == {(): 1}
    assert found["lamina_mounts"][("state", "served"),] == 1
    assert sum(found["lamina_mounts"].values()) == 1
    assert found["lamina_mount_ready_bytes"] == {labels: mount.ready_bytes}
    assert found["lamina_mount_total_bytes"] == {labels: mount.total_bytes}
    assert found["lamina_mount_requests_total"][labels] >= 1
    assert found["lamina_mount_fetched_bytes_total"][labels] > 0
    assert found["lamina_mount_decoded_bytes_total"][labels] > 0
    assert found["lamina_service_waited_seconds_total"][()] > 0
    roles = {("daemon_id", role) for role in mount.pids}
    assert {name for (name,) in found["nydusd_rss_kilobytes"]} == roles
    assert all(value > 0 for value in found["nydusd_rss_kilobytes"].values())
    assert found["lamina_store_budget_bytes"] == {(): 1 << 30}
    assert found["lamina_store_used_bytes"][()] > 0
    assert main(["umount", str(mountpoint)]) == 0
    assert not is_mounted(mountpoint)


def test_without_a_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["service", "metrics", "--store", str(tmp_path / "store")]) == 0
    found = samples(capsys.readouterr().out)
    assert found["lamina_service_up"] == {(): 0}
    assert "lamina_store_budget_bytes" not in found


def test_without_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    for words in (
        ("service", "metrics"),
        ("snapshotter", "--root", str(tmp_path / "r"), "--metrics-listen", "127.0.0.1:0"),
    ):
        assert main([*words, "--store", str(tmp_path / "store")]) != 0
        assert "pip install 'lamina[metrics]'" in capsys.readouterr().err


class UnixConnection(http.client.HTTPConnection):
    """A connection to a unix socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.host)


def ask(where: Path, path: str) -> tuple[int, str]:
    connection = UnixConnection(str(where), timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


@pytest.mark.kernel
def test_the_page_of_a_snapshotter(tmp_path: Path) -> None:
    require_root()
    grpc = pytest.importorskip("grpc")
    from tests.unit.containerd.client import Client

    page, root = tmp_path / "m.sock", tmp_path / "r"
    words = [
        "--root",
        str(root),
        "--socket",
        str(tmp_path / "s.sock"),
        "--device",
        "fuse",
        "--json",
    ]
    command = [sys.executable, "-m", "lamina", "snapshotter", *words]
    environment = {**os.environ, "LAMINA_STORE": str(tmp_path / "store")}
    process = subprocess.Popen(
        [*command, "--metrics-listen", f"unix:{page}"], stdout=subprocess.PIPE, env=environment
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        client = Client(str(tmp_path / "s.sock"))
        with contextlib.closing(client.channel):
            client.prepare("one")
            client.commit("layer", "one")
            client.prepare("two", "layer")
            with pytest.raises(grpc.RpcError):
                client.stat("nowhere")
            with pytest.raises(grpc.RpcError):
                client.mounts("layer")
        status, text = ask(page, "/metrics")
        assert status == 200
        found = samples(text)
        assert ask(page, "/v1/metrics")[0] == 200
        assert ask(page, "/")[0] == 404
        counts = found["snapshotter_snapshot_operation_elapsed_milliseconds_count"]
        assert counts[("snapshot_operation", "PREPARE"),] == 2
        assert counts[("snapshot_operation", "STAT"),] == 1
        refused = found["lamina_snapshotter_refusals_total"]
        assert refused == {(("code", "FAILED_PRECONDITION"),): 1}
        assert found["lamina_snapshots"] == {
            (("kind", "active"), ("lazy", "false")): 1,
            (("kind", "committed"), ("lazy", "false")): 1,
        }
        assert found["stargz_fs_operation_duration_milliseconds_count"] == {
            (("layer", ""), ("operation_type", "mount")): 0
        }
        for name in ("memory_usage_kilobytes", "fd_counts", "thread_counts"):
            assert found[f"snapshotter_{name}"][()] > 0
        assert found["process_resident_memory_bytes"][()] > 0
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 0
    assert not page.exists()
