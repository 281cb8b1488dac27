"""Options of a mount, as mount(8) has them."""

from __future__ import annotations

import os

import pytest

from lamina.errors import UnsupportedError, UsageError
from lamina.serve.mount_options import mount_attributes, option_names

SAFE = ["ro", "nosuid", "nodev"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), SAFE),
        (("",), SAFE),
        ((",,", "ro"), SAFE),
        (("nosuid",), SAFE),
        (("noexec, noatime",), [*SAFE, "noexec", "noatime"]),
        (("noexec", "exec"), SAFE),
        (("suid",), ["ro", "nodev"]),
        (("dev",), ["ro", "nosuid"]),
        (("suid,dev",), ["ro"]),
        (("suid,dev", "nosuid"), ["ro", "nosuid"]),
        (("nosuid,suid",), ["ro", "nodev"]),
    ],
)
def test_later_ones_win(
    options: tuple[str, ...], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert option_names(mount_attributes(options)) == expected


@pytest.mark.parametrize("option", ["rw", "sync", "SUID", "nodev,sticky", "uid=0"])
def test_what_is_not_known(option: str) -> None:
    with pytest.raises(UsageError, match="not known") as caught:
        mount_attributes([option])
    assert caught.value.hint


def test_only_root_may_lift_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert option_names(mount_attributes(["noexec"])) == [*SAFE, "noexec"]
    assert option_names(mount_attributes(["suid,nosuid"])) == SAFE
    for option in ("suid", "dev"):
        with pytest.raises(UnsupportedError, match="need root"):
            mount_attributes([option])
