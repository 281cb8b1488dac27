"""Settings in a TOML file, and the same file without them."""

from __future__ import annotations

import tomllib

import pytest

from lamina.containerd.toml_text import Setting, with_settings, without_changes
from lamina.errors import FormatError, UnsupportedError

CRI = ("plugins", "io.containerd.grpc.v1.cri", "containerd")
SETTINGS = [
    Setting(("proxy_plugins", "lamina"), "address", "/run/l.sock"),
    Setting(CRI, "snapshotter", "lamina"),
    Setting(CRI, "disable_snapshot_annotations", value=False),
    Setting(("transfer",), "unpack", [{"platform": "linux/amd64", "by": "lamina"}], added=True),
]
FILES = {
    "nothing": "",
    "comments": "# mine\r\n",
    "other tables": 'version = 2\n[grpc]\n  address = "/run/c.sock"\n',
    "keys to change": (
        "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd] # the one\n"
        'snapshotter="overlayfs" # mine\n\tdisable_snapshot_annotations = true\nother = """\n'
        '[plugins."io.containerd.grpc.v1.cri".containerd]\nsnapshotter = "no key"\n"""\n'
    ),
    "keys missing": 'version = 2\r\n[plugins."io.containerd.grpc.v1.cri".containerd]\r\n[grpc]\r\n',
    "tables below": (
        'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]\ntype = "x"\n'
    ),
    "a list in a line": "[transfer]\nunpack = []\n",
    "tables of the list": '[[transfer.unpack]]\nplatform = "linux/arm64"\nby = "native"\n',
    "no end of the last line": "version = 2\n[proxy_plugins.lamina]",
    "the last key without an end": 'version = 2\n[proxy_plugins.lamina]\naddress = "/other"',
    "what ends lines elsewhere": 'version = 2\n# a\x85b\u2028c\nname = "a\u2028b"\n',
}


@pytest.mark.parametrize("text", [None, *FILES.values()], ids=["no file", *FILES])
def test_settings_go_in_and_out(text: str | None) -> None:
    new = with_settings(text, 2, SETTINGS)
    data = tomllib.loads(new)
    assert data["proxy_plugins"]["lamina"]["address"] == "/run/l.sock"
    cri = data["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]
    assert (cri["snapshotter"], cri["disable_snapshot_annotations"]) == ("lamina", False)
    assert data["transfer"]["unpack"][-1] == {"platform": "linux/amd64", "by": "lamina"}
    assert without_changes(new) == text
    # What is written meanwhile stays.
    assert without_changes(f"# first\n{new}# last\n") == "# first\n" + _ended(text) + "# last\n"


def _ended(text: str | None) -> str:
    return text + "\n" if text and not text.endswith("\n") else text or ""


def test_what_is_so_already_stays() -> None:
    text = 'version = 2\n[proxy_plugins.lamina]\naddress = "/run/l.sock"\n'
    assert with_settings(text, 2, SETTINGS[:1]) == text


@pytest.mark.parametrize(
    "text",
    [
        'version = 2\nproxy_plugins.lamina.type = "snapshot"\n',
        'version = 2\nproxy_plugins = {lamina = {type = "snapshot"}}\n',
        "version = 2\n[proxy_plugins]\nlamina = 1\n",
        'version = 2\n[proxy_plugins.lamina]\naddress = """\na\nb"""\n',
        'version = 2\n[grpc]\nsome = """\n# lamina snapshotter install: begin\n"""\n',
    ],
    ids=["dotted keys", "an inline table", "no table", "several lines", "a mark in a text"],
)
def test_other_forms_are_not_changed(text: str) -> None:
    with pytest.raises(UnsupportedError, match="not changed in place"):
        with_settings(text, 2, SETTINGS)


def test_no_toml() -> None:
    with pytest.raises(FormatError, match="is no TOML"):
        with_settings("version = ", 2, SETTINGS)
