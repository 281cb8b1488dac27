"""Puts Lamina into a folder together with its Python and every library that they need, so that it
runs where neither is: ``python distribution/bundle.py PREFIX DESTDIR``.

PREFIX is where it is going to be, DESTDIR is put before it.  Programs find their interpreter and
libraries by absolute paths, so what is moved elsewhere does not run.  Needs pip, and ``patchelf``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
EXTRAS: Final = "ocicrypt,containerd,start"
LEFT_OUT: Final = (
    *("__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter"),
    *("turtledemo", "ensurepip", "lib2to3", "config-*", "_tkinter*", "_test*", "*.a"),
)


def make_bundle(prefix: Path, destination: Path) -> None:
    """Make the folder."""
    home = prefix / "lib/lamina"
    made = destination / home.relative_to("/")
    environment = {
        **os.environ,
        "PREFIX": str(prefix),
        "DESTDIR": str(destination),
        "PYTHON": sys.executable,
        "EXTRAS": os.environ.get("EXTRAS", EXTRAS),
    }
    subprocess.run([HERE / "install"], check=True, env=environment)
    program = _add_python(made, home)
    _add_libraries(made, home, program)
    # With the paths that it is going to have.
    words: list[str | Path] = ["-I", "-m", "compileall", "-q", "-s", made, "-p", home, made]
    subprocess.run([sys.executable, *words], check=False)


def _add_python(made: Path, home: Path) -> Path:
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base = Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
    runtime = made / "runtime"
    (runtime / "bin").mkdir(parents=True)
    program = runtime / "bin" / name
    shutil.copy2(base, program)
    library = sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix})
    leave_out = shutil.ignore_patterns(*LEFT_OUT)
    shutil.copytree(library, runtime / "lib" / name, ignore=leave_out, symlinks=False)
    link = made / "bin/python3"
    link.unlink()
    link.symlink_to(f"../runtime/bin/{name}")
    config = f"home = {home}/runtime/bin\ninclude-system-site-packages = false\n"
    (made / "pyvenv.cfg").write_text(config, encoding="utf-8")
    return program


def _add_libraries(made: Path, home: Path, program: Path) -> None:
    """Copy what the dynamic loader would load, and the loader, and have them used."""
    folder = made / "runtime/lib"
    loader = ""
    for binary in (program, *_compiled(made)):
        found = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False).stdout
        for path in map(Path, re.findall(r"(?:=>|^)\s*(/\S+) \(0x", found, re.MULTILINE)):
            if path.name.startswith("ld-"):
                loader = path.name
            if not path.is_relative_to(made) and not (folder / path.name).exists():
                shutil.copy2(os.path.realpath(path), folder / path.name)
    # Folders of the machine that it was made on, which would go before those of the interpreter.
    for binary in _compiled(made / "runtime"):
        if not binary.name.startswith("ld-"):
            subprocess.run(["patchelf", "--remove-rpath", binary], check=True)
    if loader:
        words = ["--set-interpreter", f"{home}/runtime/lib/{loader}", "--force-rpath"]
        words += ["--set-rpath", f"{home}/runtime/lib"]
        subprocess.run(["patchelf", *words, program], check=True)


def _compiled(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*.so*"):
        if path.is_file() and not path.is_symlink():
            yield path


def main(arguments: Sequence[str]) -> int:
    """Make the folder; return the exit code."""
    if len(arguments) != 2 or not arguments[0].startswith("/"):
        sys.stderr.write("usage: python distribution/bundle.py PREFIX DESTDIR\n")
        return 2
    make_bundle(Path(arguments[0]), Path(arguments[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
