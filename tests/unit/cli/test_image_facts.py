from __future__ import annotations

from typing import Any

from lamina.cli.image_facts import print_facts


def test_an_image_cannot_steer_the_terminal() -> None:
    lines: list[str] = []
    facts: dict[str, Any] = {
        "reference": "oci:x",
        "kind": "oci",
        "digest": "sha256:" + "00" * 32,
        "platform": "linux/amd64",
        "created": "\x1b[2J",
        "config": {"env": ["A=\x1b]0;title\x07"], "user": "root\n  digest     sha256:ff"},
        "layers": [],
        "size": 0,
    }
    print_facts(facts, lines.append, str)
    assert all(line.isprintable() for line in lines)
    assert sum(line.startswith("  digest") for line in lines) == 1
