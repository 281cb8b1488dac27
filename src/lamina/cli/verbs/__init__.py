"""The table of verbs: what ``lamina --help`` needs to know without importing any of them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from argparse import Namespace

    from lamina.cli.help_text import HelpPage
    from lamina.cli.parser import Parser


class Verb(NamedTuple):
    """A line of the table.  Its module is ``lamina.cli.verbs.MODULE``."""

    name: str
    group: str
    summary: str

    @property
    def module(self) -> str:
        """Full name of the module that does the work."""
        return f"{__name__}.{self.name.replace('-', '_')}"


class VerbModule(Protocol):
    """What the module of a verb offers."""

    HELP: HelpPage

    def add_arguments(self, parser: Parser) -> None:
        """Declare the options and arguments."""

    def run(self, args: Namespace) -> int:
        """Do it; return the exit code.  Raises lamina.errors.Error."""


BUILD: Final = "Build and ship"
TRUST: Final = "Encrypt and sign"
RUN: Final = "Run"
LOOK: Final = "Look inside"
SELF: Final = "This program"

VERBS: Final = tuple(
    Verb(*line)
    for line in (
        ("convert", BUILD, "make a native image of an OCI image"),
        ("index", BUILD, "index an OCI image, so that it starts lazily as it is"),
        ("copy", BUILD, "copy an image from one place to another as it is"),
        ("unpack", BUILD, "turn a native image back into a folder or an OCI image"),
        ("export", BUILD, "write an image out as one disk, with a hash tree if wanted"),
        ("check", BUILD, "verify an image, or compare two trees"),
        ("encrypt", TRUST, "encrypt the layers of an OCI image for some keys"),
        ("decrypt", TRUST, "decrypt the layers of an OCI image"),
        ("key", TRUST, "make a key pair for signing, or print a public key"),
        ("sign", TRUST, "sign an image as cosign does"),
        ("verify", TRUST, "verify the signatures of an image by a key or a policy"),
        ("policy", TRUST, "check a policy file, and what it says of an image"),
        ("kbs", TRUST, "run a small key broker, and ask one for ocicrypt"),
        ("pull", RUN, "fetch all of an image, and keep it if wanted"),
        ("prefetch", RUN, "fetch files of an image before they are read"),
        ("profile", RUN, "record what a start reads, so that the next comes in one request"),
        ("run", RUN, "run a command in an image, reading its files on demand"),
        ("ps", RUN, "list the containers that run, or all of them"),
        ("exec", RUN, "run another command in a container that runs"),
        ("logs", RUN, "print what a detached container wrote"),
        ("stop", RUN, "ask containers to end, and kill those that do not"),
        ("kill", RUN, "send a signal to containers"),
        ("wait", RUN, "wait for the end of containers and print their exit codes"),
        ("guest", RUN, "run a command of an image inside of a confidential guest"),
        ("guest-disk", RUN, "make, plan and open disks of ciphertext for confidential guests"),
        ("mount", RUN, "mount an image on a folder, reading its files on demand"),
        ("serve", RUN, "serve an image as a disk over NBD, layers as files, or a cache for guests"),
        ("umount", RUN, "unmount an image and end its server"),
        ("mounts", RUN, "list the mounted images"),
        ("snapshotter", RUN, "serve containerd, so that its containers start lazily"),
        ("ctr-pull", RUN, "pull an image into containerd without its layers, for `ctr`"),
        ("service", RUN, "be the service of the mounts, ask how it is, stop or replace it"),
        ("images", RUN, "list the images that are on this node, and kept containers"),
        ("rm", RUN, "remove an image from this node, or a kept container"),
        ("unpin", RUN, "list the images that are kept for ever, or let go of some"),
        ("gc", RUN, "remove what nothing uses from the node store"),
        ("inspect", LOOK, "tell what an image is made of"),
        ("ls", LOOK, "list a directory of an image"),
        ("cat", LOOK, "print files of an image"),
        ("stat", LOOK, "show what an image knows of a path"),
        ("coverage", LOOK, "tell how much of an image is on this node"),
        ("self-test", SELF, "check this installation and report what the kernel offers"),
        ("version", SELF, "print the version"),
        ("completion", SELF, "print the completion script of a shell"),
    )
)


def find_verb(name: str) -> Verb | None:
    """Return the verb of that name, or None."""
    return next((verb for verb in VERBS if verb.name == name), None)


def load_verb(verb: Verb) -> VerbModule:
    """Import the module of one verb."""
    return cast("VerbModule", importlib.import_module(verb.module))
