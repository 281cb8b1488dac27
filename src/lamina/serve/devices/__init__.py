"""The ways in which programs see an image, one module each.

The name of a module here, with hyphens for underscores, is what ``--device`` takes, and its
``DEVICE`` is a :class:`lamina.serve.device.Device`.  Nothing else registers one.
"""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
from typing import TYPE_CHECKING, Final

from lamina.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from lamina.serve.device import Device

AUTO: Final = "auto"


def device_names() -> tuple[str, ...]:
    """Return the names of all devices."""
    return _names_in(tuple(__path__))


@functools.cache
def _names_in(folders: tuple[str, ...]) -> tuple[str, ...]:
    modules = pkgutil.iter_modules(folders)
    return tuple(sorted(module.name.replace("_", "-") for module in modules))


def find_device(name: str) -> Device:
    """Return a device by its name.  Raises UsageError if there is none."""
    names = device_names()
    if name not in names:
        known = ", ".join((AUTO, *names))
        raise UsageError(f"there is no device {name!r}", hint=f"choose of {known}")
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    device: Device = module.DEVICE
    return device


def needs_metadata_file(name: str) -> bool:
    """Tell whether the device of that name cannot mount an image before its metadata have come;
    those of ``auto`` can.
    """
    return name != AUTO and find_device(name).needs_metadata_file


def eligible_devices(name: str) -> list[Device]:
    """Return the device of that name, or for ``auto`` those that this user may try, best first.

    Raises UsageError for an unknown name, UnsupportedError where the device needs root.
    """
    is_root = os.geteuid() == 0
    if name != AUTO:
        device = find_device(name)
        if device.needs_root and not is_root:
            raise UnsupportedError(
                f"device {name} needs root",
                hint="without root, --device fuse mounts the whole tree",
            )
        return [device]
    found = [
        (device.rank, device)
        for device in map(find_device, device_names())
        if device.rank is not None and (is_root or not device.needs_root)
    ]
    return [device for _, device in sorted(found, key=lambda each: each[0])]
