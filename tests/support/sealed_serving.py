"""``python -m tests.support.sealed_serving`` leaves a mount of a sealed image to the service; the
specification comes by standard input, since it may have secrets.

Its blobs arrive slowly, so that processes can be killed while they do.
"""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec

from lamina.errors import Error
from lamina.posix import own_program
from lamina.serve.service import program
from lamina.serve.service.mounting import mount_by_service
from lamina.serve.service.spec import MountSpec
from tests.support.serving import ROOT


def start_sealed(spec: MountSpec) -> None:
    """Leave a mount behind, from a process of its own; raises RuntimeError with what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.sealed_serving"],
        input=msgspec.json.encode(spec),
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
    program.MODULE = "tests.support.distant_service"
    own_program.OPTIONS = ()
    spec = msgspec.json.decode(sys.stdin.buffer.read(), type=MountSpec)
    try:
        mount_by_service(spec)
    except Error as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
