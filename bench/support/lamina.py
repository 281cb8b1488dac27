"""Lamina in a cold start: convert with the options of a variant, run lazily from the registry."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from support.network import Link
from support.processes import FirstOutput, time_first_output
from support.registry import PORT, Registry


class Variant(NamedTuple):
    """Options of ``lamina convert`` and ``lamina run`` under a name; none means the defaults.

    With ``profiled`` the start is recorded before, and comes in one request.
    """

    name: str
    convert: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    profiled: bool = False

    @property
    def is_index(self) -> bool:
        """Whether the unmodified image is run by an index."""
        return self.name.removesuffix(START) == INDEX


def parse_variant(text: str) -> Variant:
    """``CHUNK[:PACK[:DEVICE]]`` → options, as in ``256k``, ``1m:128k``, ``256k:none:fuse``;
    ``default`` and ``index`` are none.  With ``+start`` behind it the start is recorded.
    """
    if text.endswith(START):
        plain = parse_variant(text.removesuffix(START))
        return plain._replace(name=text, profiled=True)
    if text in ("default", INDEX):
        return Variant(text)
    chunk, pack, device, *_ = [*text.split(":"), "", ""]
    convert: tuple[str, ...] = ("--chunk-size", chunk) if chunk else ()
    convert += ("--pack", pack or chunk) if chunk else ()
    return Variant(text, convert, ("--device", device) if device else ())


INDEX = "index"
"""The variant that runs the unmodified image by an index."""

START = "+start"


class Lamina:
    """``lamina run`` with an empty store."""

    def __init__(self, link: Link, folder: Path, command: str, variant: Variant) -> None:
        self.name = f"lamina {variant.name}"
        self._link = link
        self._folder = folder
        self._command = command
        self._variant = variant
        tag = "".join(c if c.isalnum() else "-" for c in variant.name)
        self._reference = f"lamina:{tag}"

    @staticmethod
    def missing() -> str | None:
        """What is not there, or None."""
        return None if shutil.which("runc") or shutil.which("crun") else "runc or crun"

    def prepare(self, registry: Registry, layout: Path) -> None:
        """Convert the image straight into the registry, or push it as it is and index it."""
        target = f"docker://127.0.0.1:{PORT}/{self._reference}"
        source = f"oci:{layout}:latest"
        if self._variant.is_index:
            registry.run("skopeo", "copy", "-q", "--dest-tls-verify=false", source, target)
            registry.run(*_program("index"), target)
        else:
            registry.run(*_program("convert"), *self._variant.convert, source, target)
        if self._variant.profiled:
            store = ("--store", str(self._folder))
            registry.run(*_program("profile"), *store, target, *self._command.split())

    def start(self, registry: str) -> FirstOutput:
        """One cold start with an empty store."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        options = ("--plain-http", "--store", str(self._folder), "--rm", *self._variant.run)
        if not self._variant.profiled:
            # Another variant may be the same image.
            options += ("--profile", "none")
        image = f"docker://{registry}/{self._reference}"
        command = (*_program("run"), *options, image, *self._command.split())
        try:
            return time_first_output(self._link.on_client(*command))
        finally:
            for point in _mounts_below(self._folder):
                subprocess.run(["umount", "-l", point], check=False)
            shutil.rmtree(self._folder, ignore_errors=True)


def _program(verb: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "lamina", verb)


def _mounts_below(folder: Path) -> list[str]:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((point for point in points if point.startswith(f"{folder}/")), reverse=True)
