"""The first program of the guest image: what it takes of the command line that the host writes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

INIT = Path(__file__).parents[2] / "distribution/guest_init"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("quiet lamina.disk=/dev/vdb lamina.cache=http://10.0.2.2:5001\n", "/dev/vdb"),
        ("lamina.disk=/dev/vdb lamina.disk=/dev/vdc\n", "/dev/vdb"),
        ("lamina.disk=/dev/vdb\t0\t1 quiet\n", "/dev/vdb"),
        ("lamina.disk=--work=/dev/vdb lamina.diskette=1\n", ""),
        ("quiet\n", ""),
    ],
)
def test_a_value_is_one_word_and_no_option(line: str, found: str, tmp_path: Path) -> None:
    path = tmp_path / "cmdline"
    path.write_text(line)
    (function,) = (part for part in INIT.read_text().splitlines() if part.startswith("value() {"))
    script = function.replace("/proc/cmdline", f"'{path}'") + "\nvalue disk"
    told = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.strip("\n") == found
