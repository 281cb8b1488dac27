"""``node -v`` from ``/dev/vdb``, by root of a machine of its own: mounts, changes root, runs.

``python tests/support/in_guest_node.py KIB``: how far the kernel reads ahead on the disk.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lamina.linux.mount import attach_mount, create_mount

ROOT = Path("/disk/root")


def main() -> int:
    """Print what node says; its exit code."""
    Path("/sys/block/vdb/queue/read_ahead_kb").write_text(sys.argv[1])
    ROOT.mkdir()
    opened = create_mount("erofs", "/dev/vdb", [("ro", None)])
    attach_mount(opened, str(ROOT))
    os.close(opened)
    done = subprocess.run(
        ["/usr/bin/node", "-v"], preexec_fn=lambda: os.chroot(ROOT), cwd=ROOT, check=False
    )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
