"""The real nydusd, serving a bootstrap over FUSE with its blobs in a local folder."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support import tools


@contextmanager
def nydusd_mount(program: Path, bootstrap: Path, blobs: Path, work: Path) -> Iterator[Path]:
    """Yield the folder where nydusd shows the tree; skips or fails without ``/dev/fuse``."""
    if not os.path.exists("/dev/fuse"):
        tools.missing("no /dev/fuse on this machine")
    mountpoint = work / "mnt"
    for each in (mountpoint, work / "cache"):
        each.mkdir(parents=True)
    backend = {"type": "localfs", "config": {"dir": str(blobs)}}
    cache = {"type": "blobcache", "config": {"work_dir": str(work / "cache")}}
    device = {"backend": backend, "cache": cache}
    config = {"device": device, "mode": "direct", "digest_validate": False, "enable_xattr": True}
    (work / "config.json").write_text(json.dumps(config))
    command = [str(program), "fuse", "--rlimit-nofile", "0", "--mountpoint", str(mountpoint)]
    command += ["--bootstrap", str(bootstrap), "--config", str(work / "config.json")]
    command += ["--apisock", str(work / "socket")]
    with (
        (work / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as daemon,
    ):
        try:
            deadline = time.monotonic() + 60
            while not os.path.ismount(mountpoint):
                alive = daemon.poll() is None and time.monotonic() < deadline
                assert alive, (work / "log").read_text()
                time.sleep(0.05)
            yield mountpoint
        finally:
            subprocess.run(["umount", "-l", str(mountpoint)], check=False)
            daemon.terminate()
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(60)
            daemon.kill()
