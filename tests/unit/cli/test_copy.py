"""``lamina copy``."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tests.support.native_images import build_image, push_image

from lamina.cli import main
from lamina.errors import NotFoundError, UsageError


def test_the_platform_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    push_image(build_image({b"file": b"content"}), tmp_path / "there")
    places = [f"oci:{tmp_path}/there:latest", f"oci:{tmp_path}/copied:latest"]
    assert main(["copy", "--platform", "linux/arm64", *places]) == NotFoundError.exit_code
    assert "it is a single image for linux/amd64" in capsys.readouterr().err
    assert not (tmp_path / "copied").exists()
    everything = ["copy", "--all", "--platform", "linux/amd64", *places]
    assert main(everything) == UsageError.exit_code
    assert main(["copy", "--platform", "linux/amd64", *places]) == 0
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
