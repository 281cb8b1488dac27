"""What ``lamina self-test`` reports of the machine."""

from __future__ import annotations

import os

import pytest

from lamina.cli import machine_report


def test_a_device_that_is_closed_to_us(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def opening(path: str, *arguments: int, **more: int) -> int:
        if path == "/dev/fuse":
            raise PermissionError(13, "Permission denied", path)
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, "open", opening)
    found = {feature.name: feature for feature in machine_report.features()}
    assert found["/dev/fuse"] == ("/dev/fuse", False, "it cannot be opened: Permission denied")
