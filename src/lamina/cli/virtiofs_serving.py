"""``lamina serve virtiofs``: images as a share of a virtual machine."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Final

from lamina.cli import console
from lamina.cli.output import print_json, print_line
from lamina.errors import UsageError

TAG: Final = "image"
"""By which the guest mounts the share."""


def serve_virtiofs(args: Namespace) -> int:
    """Serve until the virtual machine is gone, or SIGTERM, SIGINT or SIGHUP comes."""
    from lamina.serve.foreground import stop_signals
    from lamina.serve.virtiofs import (
        VirtiofsServer,
        command_line,
        find_program,
        machine_command,
        share_folder,
    )

    if args.socket is None:
        raise UsageError("--socket says where the virtual machine finds the share")
    socket = os.path.abspath(args.socket)
    if args.print_command is not None:
        print_line(machine_command(args.print_command, socket, TAG))
        return 0
    if os.geteuid() != 0:
        raise UsageError("only root can mount what virtiofsd shows with all owners")
    images = named_images(args.served)
    program = find_program()
    with stop_signals() as stop_fd, share_folder(list(images)) as folders:
        for name, image in images.items():
            _mount(args, image, os.fspath(folders[name]))
        server = VirtiofsServer(command_line(program, socket, os.fspath(folders[""])), socket)
        try:
            if args.json:
                print_json({"socket": socket, "tag": TAG, "images": images})
                sys.stdout.flush()
            console.info(f"serving {len(images)} images as a share on {socket}")
            if not server.wait(stop_fd):
                console.info("told to stop")
        finally:
            server.close()
    return 0


def named_images(texts: Sequence[str]) -> dict[str, str]:
    """Return images by the names of their folders; one without a name is the share itself.

    Raises UsageError.
    """
    if len(texts) == 1 and "=" not in texts[0]:
        return {"": texts[0]}
    found: dict[str, str] = {}
    for text in texts:
        name, separator, image = text.partition("=")
        if not separator or not image or name in ("", ".", "..") or "/" in name:
            raise UsageError(
                f"{text} does not say in which folder of the share the image is",
                hint=f"NAME=IMAGE: app={text}",
            )
        if name in found:
            raise UsageError(f"two images have the name {name}")
        found[name] = image
    return found


def _mount(args: Namespace, image: str, folder: str) -> None:
    """Have the mount service mount an image as long as this process lives."""
    from lamina.cli.opening import index_and_tell, open_request
    from lamina.opening.request import for_another_process
    from lamina.serve.service.mounting import mount_by_service
    from lamina.serve.service.spec import Lease, MountSpec

    spec = MountSpec(
        image=for_another_process(open_request(args, image)),
        mountpoint=folder,
        lease=Lease.of_this_process(),
    )
    mount_by_service(spec, index_and_tell)
