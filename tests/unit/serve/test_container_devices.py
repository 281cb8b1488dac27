"""Devices of the host in a container."""

from __future__ import annotations

from pathlib import Path

from lamina.serve.container_devices import device_nodes
from lamina.serve.container_options import Device


def test_a_folder_with_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "gone").symlink_to("absent")
    (tmp_path / "file").write_text("no device")
    nodes, rules = device_nodes((Device(str(tmp_path), "/dev/some"),))
    assert [node["path"] for node in nodes] == ["/dev/some/null"]
    assert [(rule["major"], rule["minor"]) for rule in rules] == [(1, 3)]
