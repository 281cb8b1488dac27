"""Pulling into containerd: images that are none."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from lamina.containerd.daemon import Daemon
from lamina.containerd.pull import Document, Documents, _take_layers
from lamina.errors import FetchError, FormatError
from lamina.oci.manifest import EMPTY, OCI_EMPTY, Manifest, describe


def test_an_image_without_layers_is_refused_in_words() -> None:
    manifest = Manifest(schema_version=2, config=describe(OCI_EMPTY, EMPTY))
    document = Document("", "sha256:00", b"")
    found = Documents(document, document, document, manifest, ())
    with pytest.raises(FormatError, match="has no layers"):
        _take_layers(cast("Any", None), "lamina", "reg.example/app:1", found)


def test_a_daemon_that_does_not_answer(tmp_path: Path) -> None:
    """Each call ends; that which offers a layer may take longer."""
    server = socket.socket(socket.AF_UNIX)
    with contextlib.closing(server):
        server.bind(str(tmp_path / "socket"))
        server.listen()
        # It accepts nobody, so that no call is ever answered.
        daemon = Daemon(str(tmp_path / "socket"), "default", call_s=0.2, layer_s=0.3)
        with contextlib.closing(daemon):
            for ask in (
                lambda: daemon.has_snapshot("lamina", "x"),
                lambda: daemon.offer_layer("lamina", "x", "", {}),
                lambda: daemon.put("x", b"x", "sha256:00", {}),
            ):
                with pytest.raises(FetchError, match="takes too long to answer"):
                    ask()
