"""``python -m tests.support.sealed_serving`` leaves a mount of a sealed image to the service; the
specification comes by standard input, since it may have secrets.

Its blobs arrive slowly, so that processes can be killed while they do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from lamina.errors import Error
from lamina.fetch.source import RepositorySource
from lamina.image.native import NativeImage
from lamina.serve.service.mounting import mount_by_service
from lamina.serve.service.spec import MountSpec, open_reference
from tests.support.serving import ROOT

DELAY_S = 0.01
_read_range = RepositorySource.read_range


def _read_slowly(self: RepositorySource, blob_id: str, offset: int, size_bytes: int) -> bytes:
    time.sleep(DELAY_S)
    return _read_range(self, blob_id, offset, size_bytes)


def open_slowly(spec: MountSpec) -> NativeImage:
    """As the service does, from a place that is far away."""
    RepositorySource.read_range = _read_slowly  # type: ignore[method-assign]
    return open_reference(spec)


def start_sealed(spec: MountSpec) -> None:
    """Leave a mount behind, from a process of its own; raises RuntimeError with what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.sealed_serving"],
        input=json.dumps(spec.to_json()).encode(),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.decode())


def main() -> int:
    """Mount."""
    spec = MountSpec.from_json(json.load(sys.stdin))
    try:
        mount_by_service(spec)
    except Error as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
