"""``lamina check`` of one image."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.native_images import build_image, push_image

from lamina.cli import main
from lamina.errors import FormatError


def test_a_table_with_pieces_that_overlap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = build_image({b"file": random.Random(1).randbytes(8192)})
    command = ["check", "--store", f"{tmp_path}/store"]
    push_image(built, tmp_path / "sound")
    assert main([*command, f"oci:{tmp_path}/sound:latest"]) == 0
    meta = bytearray(built.meta)
    assert int.from_bytes(meta[24:29], "little") == built.pieces[1][0] == 4096
    meta[24:26] = (4095).to_bytes(2, "little")
    push_image(replace(built, meta=bytes(meta)), tmp_path / "damaged")
    assert main([*command, f"oci:{tmp_path}/damaged:latest"]) == FormatError.exit_code
    assert "piece 1 overlaps the one before it" in capsys.readouterr().err
