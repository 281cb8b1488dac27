"""Open the disk of a guest: attest, get its key, and have the kernel decrypt and check it.

Nothing of Lamina runs afterwards.  What is wrong then is an I/O error of the kernel.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
from typing import Final

from lamina.errors import Error, TrustError, UnsupportedError, UsageError
from lamina.guest.agent import GuestSettings, guest_broker
from lamina.guest.disk_plan import DiskPlan, plan_of
from lamina.trust.broker.init_data import read_init_data

_FIRST_BYTES: Final = 4096
_DEVICE: Final = re.compile(r"/[A-Za-z0-9+,.:=@_/-]{1,255}")
"""The host says where its disk is, and that goes into the table with the key: nothing there may
begin another word or line.
"""


def open_disk(device: str, name: str, settings: GuestSettings) -> str:
    """Map *device* by the plan in the init-data and return the device that is to be mounted.

    *name* is what device-mapper calls it.  Raises UsageError for what is no path of a device,
    TrustError for a disk that is another one than planned, UnsupportedError without dmsetup, Error
    for what the kernel refuses, and what :func:`lamina.guest.agent.guest_broker` raises.
    """
    if not _DEVICE.fullmatch(device):
        raise UsageError(f"{device[:200]!r} is no path of a device", hint="/dev/vda, or the like")
    plan = plan_of(read_init_data(settings.init_data))
    with guest_broker(settings) as client, client.fetch(plan.resource) as secret:
        key = secret.reveal()
    below = f"{name}-crypt"
    decrypted = _create(below, plan.crypt_table(key, device))
    try:
        checked = _create(name, plan.verity_table(key, decrypted))
        try:
            _look_at(checked, plan)
        except BaseException:
            _remove(name)
            raise
    except BaseException:
        _remove(below)
        raise
    return checked


def _look_at(device: str, plan: DiskPlan) -> None:
    """Read the first block: a disk that is another one is refused here, in one sentence."""
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.pread(fd, _FIRST_BYTES, 0)
    except OSError as error:
        if error.errno != errno.EIO:
            raise Error(f"cannot read {device}: {error.strerror}") from error
        raise TrustError(
            f"the disk that the host gives is not the one with the root hash {plan.root_hash}"
        ) from error
    finally:
        os.close(fd)


def _create(name: str, table: str) -> str:
    """Make a device and return its node, which the kernel has made: there may be no udev."""
    _dmsetup("create", "--readonly", "--noudevsync", name, given=table)
    try:
        told = _dmsetup("info", "--columns", "--noheadings", "-o", "minor", name)
    except BaseException:
        _remove(name)
        raise
    return f"/dev/dm-{int(told)}"


def _remove(name: str) -> None:
    subprocess.run(
        ["dmsetup", "remove", "--noudevsync", "--retry", name], capture_output=True, check=False
    )


def _dmsetup(*words: str, given: str = "") -> str:
    """Run dmsetup; the table, which has the key in it, is on its standard input."""
    command = ["dmsetup", *words]
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UnsupportedError(
            "devices are made by dmsetup, which is not installed", hint="install dmsetup"
        ) from None
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise Error(f"dmsetup {words[0]} failed: {said[-1] if said else done.returncode}")
    return done.stdout
