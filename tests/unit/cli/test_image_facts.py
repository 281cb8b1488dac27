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


def test_nothing_is_said_to_be_here_that_is_not() -> None:
    lines: list[str] = []
    tree = {"inodes": 1, "bytes": 1, "compressor": "zstd", "digester": "blake3", "prefetch": 0}
    blob = {"id": "f", "stored_bytes": 1, "plain_bytes": 1, "packed": False, "read_whole": False}
    facts: dict[str, Any] = {
        "reference": "oci:x",
        "kind": "native",
        "digest": "sha256:" + "00" * 32,
        "platform": None,
        "created": None,
        "config": {},
        "layers": [],
        "size": 0,
        "tree": {**tree, "chunk_size": 4096},
        "blobs": [{**blob, "chunks": 1000, "pieces": 1000, "ready_chunks": 999}],
    }
    print_facts(facts, lines.append, str)
    assert lines[-1].endswith("99 % here")
