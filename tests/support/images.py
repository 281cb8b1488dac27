"""Real images for tests and benchmarks: Debian by debootstrap, kept outside the repository as OCI
layouts.

``minbase`` has one layer.  ``node`` (nodejs and npm) and ``python`` (python3, numpy, pandas) have
two: minbase, and what the packages add to it.  Every layout is tagged ``latest``.  Building takes
one to three minutes an image, once.

As a program: ``python -m tests.support.images minbase node`` builds them and prints their paths.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.cache import cache_folder, exclusive

SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
PACKAGES = {
    "minbase": (),
    "node": ("nodejs", "npm"),
    "python": ("python3", "python3-numpy", "python3-pandas"),
}
TREES = {**PACKAGES, "systemd": ("systemd-sysv", "python3", "fuse3")}
"""Packages of the trees, of which some are no images: ``systemd`` boots in a container."""
PROBES = {
    "minbase": "dpkg --audit && command -v apt-get",
    "node": "node -v && test -d /usr/share/nodejs/npm",
    "python": "python3 -c 'import pandas'",
    "systemd": "systemctl --version && fusermount3 -V && python3 -c 'import ssl'",
}
"""Commands that work in a tree that was built."""
PROGRAMS = ("debootstrap", "rsync", "umoci", "chroot")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def image_layout(name: str) -> Path:
    """Path of the OCI layout of a test image, built if it is not in the cache.  Needs root to
    build.
    """
    layout = cache_folder("images") / name
    if not (layout / "index.json").exists():
        with exclusive(layout.parent / f".{name}.lock"):
            if not (layout / "index.json").exists():
                _build_layout(name, layout)
    return layout


def is_built(name: str) -> bool:
    """Whether the image is in the cache already."""
    return (cache_folder("images") / name / "index.json").exists()


def root_folder(name: str) -> Path:
    """The file tree that the image is made of, built by debootstrap and apt if it is not in the
    cache.
    """
    root = cache_folder("rootfs") / name
    if not root.exists():
        with exclusive(root.parent / f".{name}.lock"):
            if not root.exists():
                _build_root(name, root)
    return root


def _build_root(name: str, root: Path) -> None:
    staging = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=root.parent))
    staging.chmod(0o755)
    try:
        _debootstrap(staging, name)
        _tidy(staging)
        staging.rename(root)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _debootstrap(root: Path, name: str) -> None:
    """Some sandboxes forbid the mounts and device nodes that its last step wants, and npm cannot be
    configured by it; the tree serves all the same.
    """
    arguments = ["debootstrap", "--variant=minbase", "--merged-usr"]
    if TREES[name]:
        arguments.append(f"--include={','.join(TREES[name])}")
    done = subprocess.run([*arguments, SUITE, str(root), MIRROR], capture_output=True, text=True)
    probe = subprocess.run(
        ["chroot", str(root), "/bin/sh", "-c", PROBES[name]], capture_output=True
    )
    if done.returncode and probe.returncode:
        raise RuntimeError(f"debootstrap failed: {done.stdout[-1500:]}{done.stderr[-1500:]}")


def _tidy(root: Path) -> None:
    for pattern in (
        "var/cache/apt/archives/*.deb",
        "var/cache/apt/*.bin",
        "var/lib/apt/lists/*",
        "debootstrap",
    ):
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _build_layout(name: str, layout: Path) -> None:
    """One ``umoci repack`` a layer, so that each holds only what changed against the tree below
    it.
    """
    staging = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=layout.parent))
    image, bundle = f"{staging}/layout:latest", staging / "bundle"
    try:
        _run("umoci", "init", "--layout", f"{staging}/layout")
        _run("umoci", "new", "--image", image)
        _run("umoci", "unpack", "--image", image, str(bundle))
        for layer in ("minbase",) if name == "minbase" else ("minbase", name):
            _run(
                "rsync",
                "-rlpgoDHAXt",
                "--checksum",
                "--delete",
                f"{root_folder(layer)}/",
                f"{bundle}/rootfs/",
            )
            _run("umoci", "repack", "--refresh-bundle", "--image", image, str(bundle))
        _run(
            "umoci",
            "config",
            "--image",
            image,
            "--config.cmd",
            "/bin/sh",
            "--config.env",
            f"PATH={PATH}",
        )
        _run("umoci", "gc", "--layout", f"{staging}/layout")
        (staging / "layout").rename(layout)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _run(*command: str) -> None:
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "DEBIAN_FRONTEND": "noninteractive",
        "PATH": f"{os.environ['PATH']}:{PATH}",
    }
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        output = done.stdout[-1500:] + done.stderr[-1500:]
        raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}\n{output}")


if __name__ == "__main__":
    for wanted in sys.argv[1:] or PACKAGES:
        print(image_layout(wanted), flush=True)
