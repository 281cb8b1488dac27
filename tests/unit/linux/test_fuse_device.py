from __future__ import annotations

import os
from contextlib import ExitStack

import pytest
from tests.support.tools import require_root

from lamina.linux import fuse_device, mount
from lamina.linux.mount_table import device_number

pytestmark = pytest.mark.kernel


def test_a_number_that_went_to_another_mount_is_left_alone() -> None:
    """The kernel gives the lowest number that is free; other programs mount as well."""
    require_root()
    with ExitStack() as stack:
        device, root, number = connection(stack)
        assert fuse_device.is_connected(device)
        os.close(root)
        assert not fuse_device.is_connected(device)
        for _ in range(50):
            other, held, taken = connection(stack)
            stack.callback(os.close, held)
            if taken == number:
                break
        else:
            pytest.skip("somebody else has mounted on the number that was free")
        assert not fuse_device.abort_connection(number, device)
        assert fuse_device.is_connected(other)
        assert fuse_device.abort_connection(number, other)
        assert not fuse_device.is_connected(other)


def connection(stack: ExitStack) -> tuple[int, int, int]:
    """A device, a descriptor of its mount, which is nowhere, and the number of that."""
    device = fuse_device.open_device()
    stack.callback(os.close, device)
    root = fuse_device.create_fuse_mount(device, [], mount.MOUNT_ATTR_RDONLY)
    return device, root, device_number(root)
