"""With a policy, what is read is what was proven, whatever the place answers next."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.registry.images import make_image

from lamina.cli import main, opening
from lamina.errors import TrustError
from lamina.image.errors import NoIndexError
from lamina.registry.reference import parse_reference
from lamina.registry.repository import open_repository
from lamina.trust.cosign_key import generate
from lamina.trust.image_signature import sign_image

IDENTITY = "registry.example/app:v1"


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Options, with the policy that wants the image in ``image`` to be signed."""
    make_image(tmp_path / "image", "v1")
    key = generate()
    with open_repository(parse_reference(f"oci:{tmp_path}/image:v1"), write=True) as repository:
        sign_image(repository, key, identity=IDENTITY)
    demand = {
        "type": "sigstoreSigned",
        "keyData": base64.b64encode(key.public().pem()).decode(),
        "signedIdentity": {"type": "exactReference", "dockerReference": IDENTITY},
    }
    policy = {"default": [{"type": "reject"}], "transports": {"oci": {"": [demand]}}}
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    return ["--store", f"{tmp_path}/store", "--policy", f"{tmp_path}/policy.json"]


def put_other(folder: Path) -> None:
    """Let the tag name an image that nobody signed."""
    other = folder / "other"
    make_image(other, "v1", seed=7)
    shutil.copytree(other / "blobs", folder / "image/blobs", dirs_exist_ok=True)
    shutil.copy(other / "index.json", folder / "image/index.json")


def test_the_tag_moves_after_the_proof(
    tmp_path: Path,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real: Callable[..., Any] = opening.open_native

    def and_then(*args: Any, **options: Any) -> Any:
        try:
            return real(*args, **options)
        except NoIndexError:
            put_other(tmp_path)
            raise

    monkeypatch.setattr(opening, "open_native", and_then)
    assert main(["ls", *words, f"oci:{tmp_path}/image:v1"]) == TrustError.exit_code
    assert "layers" not in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["--raw"], ["--json"]])
def test_inspect_shows_what_is_proven_only(
    tmp_path: Path, words: list[str], more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["inspect", *more, *words, f"oci:{tmp_path}/image:v1"]
    assert main(command) == 0
    put_other(tmp_path)
    capsys.readouterr()
    assert main(command) == TrustError.exit_code
    assert "layers" not in capsys.readouterr().out
