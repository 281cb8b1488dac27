"""Devices of the host in a container: nodes, and the rules of who may use them.

OCI runtime specification 1.0.2, config-linux.md ("Devices", "Allowed Device list").
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from typing import Any, Final

from lamina.errors import NotFoundError, UsageError
from lamina.serve.container_options import Device

_RULE: Final = re.compile(r"([abc]) (\d+|\*):(\d+|\*) ([rwm]{1,3})")


def device_nodes(devices: tuple[Device, ...]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the entries of ``linux.devices`` and the rules that let the container use them.

    Raises NotFoundError for a device that is not there, UsageError for a path of something else.
    """
    nodes, rules = [], []
    for device in devices:
        for source, target in _each(device):
            status = os.stat(source)
            kind = "b" if stat.S_ISBLK(status.st_mode) else "c"
            number = {"major": os.major(status.st_rdev), "minor": os.minor(status.st_rdev)}
            nodes.append(
                {
                    "path": target,
                    "type": kind,
                    **number,
                    "fileMode": stat.S_IMODE(status.st_mode),
                    "uid": status.st_uid,
                    "gid": status.st_gid,
                }
            )
            rules.append({"allow": True, "type": kind, **number, "access": device.access})
    return nodes, rules


def device_rule(text: str) -> dict[str, Any]:
    """``c 13:* rwm`` as a rule of the runtime configuration.  Raises UsageError."""
    found = _RULE.fullmatch(text)
    if found is None:
        raise UsageError(
            f"{text!r} is no rule for devices", hint="write --device-cgroup-rule 'c 13:* rwm'"
        )
    kind, major, minor, access = found.groups()
    rule: dict[str, Any] = {"allow": True, "type": kind, "access": access}
    rule |= {name: int(n) for name, n in (("major", major), ("minor", minor)) if n != "*"}
    return rule


def _each(device: Device) -> Iterator[tuple[str, str]]:
    try:
        mode = os.stat(device.source).st_mode
    except OSError as error:
        raise NotFoundError(
            f"there is no device {device.source}: {error.strerror}", hint="ls -l /dev lists them"
        ) from error
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        yield device.source, device.target
        return
    if not stat.S_ISDIR(mode):
        raise UsageError(f"{device.source} is no device", hint="a file is shown with -v")
    for folder, _, names in os.walk(device.source):
        for name in sorted(names):
            path = os.path.join(folder, name)
            try:
                kind = os.stat(path).st_mode
            except OSError:
                # A link that leads nowhere, or a device that is pulled out.
                continue
            if stat.S_ISCHR(kind) or stat.S_ISBLK(kind):
                yield path, os.path.join(device.target, os.path.relpath(path, device.source))
