"""Indexing an encrypted image on its node asks for its keys as opening it does."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import NoReturn

import pytest
from tests.unit.trust.keys_in_code import make_key

from lamina.build.node_index import index_here
from lamina.errors import TrustError
from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.opening.place import Place
from lamina.opening.request import request_of
from lamina.opening.version import Version
from lamina.registry.layout import LayoutRepository
from lamina.store.node import NodeStore
from lamina.trust.encryption.image_encryption import encrypt_layer
from lamina.trust.encryption.recipients import DecryptionKeys, Recipients

PLAIN = bytes(1024)


class Asked(DecryptionKeys):
    """Keys that a broker would be asked for."""

    def for_image(self, image_digest: str, release: int | None = None) -> NoReturn:
        raise TrustError(f"{image_digest} of release {release}")


def test_a_key_broker_is_told_the_release(tmp_path: Path) -> None:
    where = f"oci:{tmp_path}/layout:1"
    with LayoutRepository(parse_reference(where), write=True) as layout:
        sealed = io.BytesIO()
        recipients = Recipients((make_key("P-256").public(),))
        layer = m.describe(m.OCI_LAYER, PLAIN)
        layer = encrypt_layer(layer, io.BytesIO(PLAIN), sealed, recipients)
        layout.push_blob(layer, io.BytesIO(sealed.getvalue()))
        diff_id = "sha256:" + hashlib.sha256(PLAIN).hexdigest()
        config = {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        }
        data = json.dumps(config).encode()
        described = m.describe(m.OCI_CONFIG, data)
        layout.push_blob(described, io.BytesIO(data))
        manifest = m.Manifest(
            schema_version=2, media_type=m.OCI_MANIFEST, config=described, layers=(layer,)
        )
        pushed = layout.push_manifest("1", m.OCI_MANIFEST, m.encode(manifest))
        place = Place(layout, NodeStore(tmp_path / "store"), keys=Asked())
        version = Version(layout.reference.with_version(digest=pushed.digest), True, 7)
        with pytest.raises(TrustError, match=f"{pushed.digest} of release 7"):
            index_here(place, request_of(where), version)
