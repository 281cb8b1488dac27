"""``make demo`` tells what is so, and draws it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from lamina.cli.self_tests import write_layout
from tests.support.containers import small_root
from tests.support.tools import require_kernel, require_root, require_tool

pytestmark = [pytest.mark.kernel, pytest.mark.tools]

ROOT = Path(__file__).parents[2]


def test_the_demo(tmp_path: Path) -> None:
    require_root()
    require_kernel(6, 12, "file-backed EROFS")
    for program in ("runc", "docker-registry", "apt-get", "dpkg-deb"):
        require_tool(program)
    root = small_root(tmp_path / "root")
    (root / "ballast").write_bytes(os.urandom(2 << 20))
    with tarfile.open(tmp_path / "layer.tar", "w") as archive:
        archive.add(root, ".")
    plain = (tmp_path / "layer.tar").read_bytes()
    write_layout(tmp_path / "layout", "latest", plain, {"Cmd": ["/bin/sh"]})
    picture = tmp_path / "start.svg"
    command = [
        *(sys.executable, str(ROOT / "demo/demo.py"), "--mbit", "200"),
        *("--image", str(tmp_path / "layout"), "--picture", str(picture), "--"),
        *("/bin/sh", "-c", "head -c 700000 /ballast | sha256sum"),
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "LAMINA_START_WAIT_S": "100"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = {
        name.strip(): (float(megabytes), int(requests))
        for name, megabytes, requests in re.findall(
            r"^  (.+?) +[\d.]+ s +([\d.]+) MB +(\d+) requests$", done.stdout, re.MULTILINE
        )
    }
    first, again = rows["run from an empty store"], rows["the same again"]
    recorded = rows["recorded, from an empty store"]
    assert recorded[0] <= first[0]
    assert recorded[1] < first[1]
    assert again[0] == 0.0
    drawn = ET.fromstring(picture.read_text())
    bars = list(drawn.iter("{http://www.w3.org/2000/svg}rect"))
    # One a request of both runs, beside those of legend, panels and ground.
    assert len(bars) == first[1] + recorded[1] + 4 + 2 + 1
