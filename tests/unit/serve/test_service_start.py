"""What a process of the service that takes another one's place has to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.native_images import build_image, push_image

SCRIPT = """
import sys
from lamina.serve.service.start import import_all
import_all()
known = set(sys.modules)

from lamina.opening.request import OpenRequest
from lamina.serve.devices import device_names, find_device
from lamina.serve.service.spec import MountSpec, open_spec

reference, store = sys.argv[1:]
for device in device_names():
    find_device(device)
    spec = MountSpec(image=OpenRequest(reference=reference, store=store), mountpoint="/mnt")
    with open_spec(spec) as image:
        image.pread(image.stat("/a"), 0, 10)
print(*sorted(name for name in set(sys.modules) - known if name.startswith("lamina")))
"""


def test_a_successor_imports_nothing(tmp_path: Path) -> None:
    """Readers wait for it, on a busy machine many times as long as the imports take."""
    push_image(build_image({b"a": b"some content"}), tmp_path / "layout")
    for _ in range(2):
        # The second finds in the store what the first has checked, as a successor does.
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, f"oci:{tmp_path}/layout:latest", str(tmp_path / "s")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
