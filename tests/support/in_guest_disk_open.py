"""A confidential guest without a daemon: opens disks of its host, and runs what is on them.

``python tests/support/in_guest_disk_open.py JSON``: a list of ``{"name", "device", "init_data",
"script"}``.  Prints for each what the commands printed, and ``NAME: exit code N``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.in_guest_confidential import mount, set_up_network

MS_RDONLY = 0x1


def run_case(case: dict[str, str]) -> int:
    init_data = Path("/run/initdata.toml")
    init_data.write_text(case["init_data"])
    command = [sys.executable, "-m", "lamina", "guest-disk", "open", "--evidence", "sample"]
    command += ["--init-data", str(init_data), case["device"], case["name"].replace(" ", "-")]
    print(f"== {case['name']}", flush=True)
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return done.returncode
    root = Path("/disk") / case["name"]
    root.mkdir()
    mount(done.stdout.strip(), str(root), "erofs", MS_RDONLY)
    mount("proc", str(root / "proc"), "proc")
    shell = ["/bin/sh", "-c", case["script"]]
    ended = subprocess.run(
        shell, preexec_fn=lambda: os.chroot(root), cwd=root, stderr=subprocess.STDOUT, check=False
    )
    return ended.returncode


def main() -> int:
    """Run the cases."""
    set_up_network()
    for case in json.loads(sys.argv[1]):
        code = run_case(case)
        print(f"\n{case['name']}: exit code {code}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
