"""``lamina unpack``."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.native_images import build_image, push_image

from lamina.cli import main
from lamina.errors import UsageError


@pytest.mark.parametrize("destination", ["rootfs", "out/rootfs:1"])
def test_a_folder_is_not_taken_for_an_image_of_docker_hub(
    destination: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push_image(build_image({b"file": b"content"}), tmp_path / "there")
    image = ["--store", f"{tmp_path}/store", f"oci:{tmp_path}/there:latest"]
    assert main(["unpack", *image, destination]) == UsageError.exit_code
    assert f"write ./{destination} for the folder" in capsys.readouterr().err
    assert main(["unpack", *image, f"oci:{tmp_path}/copied"]) == 0
    assert main(["unpack", *image, f"{tmp_path}/folder"]) == 0
    assert (tmp_path / "folder" / "file").read_bytes() == b"content"
