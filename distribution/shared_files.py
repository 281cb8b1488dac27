"""Writes what an installation has beside the program: ``python distribution/shared_files.py FOLDER
[PROGRAM]``.

FOLDER becomes as ``/usr`` or a virtual environment is: manual pages, completion of bash, zsh and
fish, the units of systemd, and snippets for tmpfiles.d and logrotate.  They are made from the
program in ``src`` and are not kept in the repository.  Needs the standard library only.

PROGRAM is the absolute path that the units start; without it systemd looks for ``lamina`` itself.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
COPIED: Final = {
    "lamina.service": "lib/systemd/system/lamina.service",
    "lamina-snapshotter.service": "lib/systemd/system/lamina-snapshotter.service",
    "lamina.tmpfiles": "lib/tmpfiles.d/lamina.conf",
    "lamina.logrotate": "etc/logrotate.d/lamina",
}
COMPLETIONS: Final = {
    "bash": "share/bash-completion/completions/lamina",
    "zsh": "share/zsh/site-functions/_lamina",
    "fish": "share/fish/vendor_completions.d/lamina.fish",
}
MANUAL: Final = "share/man/man1"


def write_shared_files(folder: Path, program: str = "lamina") -> None:
    """Write all files below a folder, which is made if need be; what is there already stays."""
    sys.path.insert(0, str(HERE.parent / "src"))
    try:
        from lamina.cli.completion import scripts
        from lamina.cli.man_pages import man_pages
    finally:
        del sys.path[0]
    texts = {path: (HERE / name).read_text(encoding="utf-8") for name, path in COPIED.items()}
    for unit in (path for path in texts if path.endswith(".service")):
        texts[unit] = re.sub(
            r"\blamina (?=service |umount |snapshotter )", f"{program} ", texts[unit]
        )
    texts |= {COMPLETIONS[shell]: text for shell, text in scripts().items()}
    texts |= {f"{MANUAL}/{name}": text for name, text in man_pages().items()}
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def write_anew(folder: Path) -> None:
    """Write all files below a folder that has nothing else in it."""
    shutil.rmtree(folder, ignore_errors=True)
    write_shared_files(folder)


def main(arguments: Sequence[str]) -> int:
    """Write the files; return the exit code."""
    if not 1 <= len(arguments) <= 2:
        sys.stderr.write("usage: python distribution/shared_files.py FOLDER [PROGRAM]\n")
        return 2
    write_shared_files(Path(arguments[0]), *arguments[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
