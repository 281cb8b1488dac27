"""``lamina snapshotter`` that is killed in one of its calls: ``FILE ARGUMENTS...``.

Whoever writes a name of :data:`MOMENTS` to the file has the next such call end the process: its
work is done, and on the disk, and nobody hears of it; the file goes.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

from lamina.cli import main
from lamina.containerd.layer_folders import LayerFolders
from lamina.containerd.snapshotter import Snapshotter

MOMENTS: Final = {
    "prepare": (Snapshotter, "prepare"),
    "mounts": (Snapshotter, "mounts"),
    "commit": (Snapshotter, "commit"),
    "remove": (Snapshotter, "remove"),
    # Nothing is deleted yet.
    "cleanup": (LayerFolders, "set_aside"),
}


def make_deadly(file: Path, moment: str) -> None:
    """Have the process end in a call when the file names it."""
    kind, name = MOMENTS[moment]
    work = getattr(kind, name)

    def call(*arguments: Any) -> Any:
        try:
            return work(*arguments)
        finally:
            if file.exists() and file.read_text() == moment:
                file.unlink()
                os.kill(os.getpid(), signal.SIGKILL)

    setattr(kind, name, call)


if __name__ == "__main__":
    for each in MOMENTS:
        make_deadly(Path(sys.argv[1]), each)
    sys.exit(main(["snapshotter", *sys.argv[2:]]))
