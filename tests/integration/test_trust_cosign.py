"""Signatures between Lamina and cosign, both ways, in a registry."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lamina.cli.dispatch import run_command
from lamina.oci.reference import parse_reference
from lamina.registry.copy import copy
from lamina.registry.open_repository import open_repository
from tests.support.registry_server import RegistryServer
from tests.unit.registry.images import make_image, make_index

pytestmark = pytest.mark.tools
PASSPHRASE = "correct horse"


class Cosign:
    """The program, without transparency log, with all its state in a folder of the test."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.program, self.folder = program, folder

    def __call__(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "COSIGN_PASSWORD": PASSPHRASE, "HOME": str(self.folder)}
        command = [str(self.program), *words]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=self.folder
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
        return done

    def sign(self, key: str, image: str, *, bundle: bool) -> None:
        # cosign 3 would fetch a configuration that names a transparency log, and sign in bundles.
        offline = ("--tlog-upload=false", "--use-signing-config=false")
        form = f"--new-bundle-format={str(bundle).lower()}"
        self("sign", "--key", key, *offline, "--yes", "--allow-insecure-registry", form, image)

    def verify(self, key: str, image: str, *more: str) -> bool:
        # cosign 2 wants a trusted root for bundles even where a key is given.
        root = self.folder / "root.json"
        root.write_text('{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}')
        options = ("--insecure-ignore-tlog", "--allow-insecure-registry", f"--trusted-root={root}")
        done = self("verify", "--key", key, *options, *more, image, check=False)
        print(done.stderr)
        return done.returncode == 0


@pytest.fixture
def cosign(peer: Callable[[str], Path], tmp_path: Path) -> Cosign:
    return Cosign(peer("cosign"), tmp_path)


@pytest.fixture
def lamina(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setattr("lamina.linux.memory.forbid_core_dumps", lambda: None)

    def run(*words: str) -> int:
        monkeypatch.setenv("COSIGN_PASSWORD", PASSPHRASE)
        return run_command([*words])

    return run


def push(
    registry: RegistryServer, folder: Path, name: str, seed: int = 1, many: bool = False
) -> str:
    """``HOST/NAME`` without ``docker://``."""
    if many:
        make_index(folder / "many", "v1")
    else:
        make_image(folder / f"image{seed}", "v1", seed=seed)
    source = f"oci:{folder}/{'many' if many else f'image{seed}'}:v1"
    target = registry.reference(name)
    with (
        open_repository(parse_reference(source)) as one,
        open_repository(parse_reference(target), write=True) as other,
    ):
        copy(one, other)
    return target.removeprefix("docker://")


def make_pair(lamina: Callable[..., int], prefix: Path) -> tuple[str, str]:
    assert lamina("key", "generate", str(prefix), "-q") == 0
    return f"{prefix}.key", f"{prefix}.pub"


@pytest.mark.parametrize("form", ["tag", "bundle", "both"])
@pytest.mark.parametrize("many", [False, True], ids=["image", "index"])
def test_cosign_verifies_what_we_sign(
    registry: RegistryServer,
    cosign: Cosign,
    lamina: Callable[..., int],
    tmp_path: Path,
    many: bool,
    form: str,
) -> None:
    key, public = make_pair(lamina, tmp_path / "team")
    _, foreign = make_pair(lamina, tmp_path / "foreign")
    image = push(registry, tmp_path, f"trust/ours-{form}{many:d}:v1", many=many)
    assert not cosign.verify(public, image)
    words = ("--release", "7", "-a", "owner=me", "--form", form)
    assert lamina("sign", "-q", "--key", key, *words, image) == 0
    assert cosign.verify(public, image)
    if form == "tag":
        assert cosign.verify(public, image, "-a", "owner=me")
        assert not cosign.verify(public, image, "-a", "owner=you")
    assert not cosign.verify(foreign, image)
    assert lamina("verify", "-q", "--key", public, "--min-release", "7", image) == 0
    assert lamina("verify", "-q", "--key", public, "--min-release", "8", image) == 12


def test_we_verify_what_cosign_signs(
    registry: RegistryServer, cosign: Cosign, lamina: Callable[..., int], tmp_path: Path
) -> None:
    cosign("generate-key-pair")
    key, public = f"{tmp_path}/cosign.key", f"{tmp_path}/cosign.pub"
    _, foreign = make_pair(lamina, tmp_path / "foreign")
    image = push(registry, tmp_path, "trust/theirs:v1")
    cosign.sign(key, image, bundle=False)
    assert lamina("verify", "-q", "--key", public, "--match-repository", image) == 0
    assert lamina("verify", "-q", "--key", public, image) == 12
    assert lamina("verify", "-q", "--key", foreign, "--match-repository", image) == 12
    other = push(registry, tmp_path, "trust/theirs:v2", seed=5)
    assert lamina("verify", "-q", "--key", public, "--match-repository", other) == 12


def test_bundles_both_ways(
    registry: RegistryServer, cosign: Cosign, lamina: Callable[..., int], tmp_path: Path
) -> None:
    key, public = make_pair(lamina, tmp_path / "team")
    _, foreign = make_pair(lamina, tmp_path / "foreign")
    ours = push(registry, tmp_path, "trust/bundle-ours:v1")
    assert lamina("sign", "-q", "--key", key, ours) == 0
    assert cosign.verify(public, ours, "--new-bundle-format")
    assert not cosign.verify(foreign, ours, "--new-bundle-format")
    theirs = push(registry, tmp_path, "trust/bundle-theirs:v1")
    cosign.sign(key, theirs, bundle=True)
    assert lamina("verify", "-q", "--key", public, "--any-name", theirs) == 0
    assert lamina("verify", "-q", "--key", public, theirs) == 12
    assert lamina("verify", "-q", "--key", foreign, "--any-name", theirs) == 12


def test_keys_of_each_other(
    registry: RegistryServer,
    cosign: Cosign,
    lamina: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cosign("generate-key-pair")
    theirs = f"{tmp_path}/cosign.key", f"{tmp_path}/cosign.pub"
    ours = make_pair(lamina, tmp_path / "team")
    image = push(registry, tmp_path, "trust/keys:v1")
    assert lamina("sign", "-q", "--key", theirs[0], "--form", "tag", image) == 0
    cosign.sign(ours[0], image, bundle=False)
    assert cosign.verify(theirs[1], image)
    assert cosign.verify(ours[1], image)
    capsys.readouterr()
    assert lamina("key", "public", theirs[0]) == 0
    assert capsys.readouterr().out == Path(theirs[1]).read_text()
    assert cosign("public-key", "--key", ours[0]).stdout == Path(ours[1]).read_text()
    assert lamina("verify", "-q", "--key", ours[1], "--match-repository", image) == 0


def test_a_policy_file(
    registry: RegistryServer,
    lamina: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    key, public = make_pair(lamina, tmp_path / "team")
    image = push(registry, tmp_path, "trust/policy:v1")
    scope = image.partition(":v1")[0]
    signed = [{"type": "sigstoreSigned", "keyPath": public}]
    document = {"default": [{"type": "reject"}], "transports": {"docker": {scope: signed}}}
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(document))
    assert lamina("policy", "check", str(file)) == 0
    assert lamina("verify", "-q", "--policy", str(file), image) == 12
    assert lamina("sign", "-q", "--key", key, image) == 0
    assert lamina("verify", "-q", "--policy", str(file), image) == 0
    capsys.readouterr()
    assert lamina("policy", "check", "--json", str(file), image) == 0
    assert json.loads(capsys.readouterr().out)["scope"] == scope
    other = push(registry, tmp_path, "trust/elsewhere:v1")
    assert lamina("verify", "-q", "--policy", str(file), other) == 12


def test_key_files(lamina: Callable[..., int], tmp_path: Path) -> None:
    key, public = make_pair(lamina, tmp_path / "team")
    assert Path(key).stat().st_mode & 0o777 == 0o600
    assert lamina("key", "generate", f"{tmp_path}/team") == 2
    Path(key).chmod(0o644)
    assert lamina("sign", "--key", key, "localhost:1/x:v1") == 12
    assert b"PUBLIC KEY" in Path(public).read_bytes()


def test_signatures_made_in_a_layout_folder_travel(
    registry: RegistryServer, cosign: Cosign, lamina: Callable[..., int], tmp_path: Path
) -> None:
    """Sign before pushing; image and signatures are pushed as they are, and cosign verifies both
    forms, also in a folder that it saves.
    """
    key, public = make_pair(lamina, tmp_path / "team")
    _, foreign = make_pair(lamina, tmp_path / "foreign")
    make_image(tmp_path / "layout", "v1")
    target = registry.reference("trust/layout")
    name = target.removeprefix("docker://")
    local = f"oci:{tmp_path}/layout"
    words = ("--identity", f"{name}:v1", "--release", "7")
    assert lamina("sign", "-q", "--key", key, *words, f"{local}:v1") == 0
    assert lamina("verify", "-q", "--key", public, "--identity", f"{name}:v1", f"{local}:v1") == 0
    assert lamina("verify", "-q", "--key", foreign, "--identity", f"{name}:v1", f"{local}:v1") == 12
    with open_repository(parse_reference(f"{local}:v1")) as repository:
        hexed = repository.manifest()[0].digest.replace(":", "-")
    for tag in ("v1", f"{hexed}.sig", hexed):
        assert lamina("copy", "-q", "--all", f"{local}:{tag}", f"{target}:{tag}") == 0
    assert cosign.verify(public, f"{name}:v1")
    assert cosign.verify(public, f"{name}:v1", "--new-bundle-format")
    assert not cosign.verify(foreign, f"{name}:v1")
    assert lamina("verify", "-q", "--key", public, "--min-release", "7", f"{name}:v1") == 0
    cosign("save", "--dir", "saved", "--allow-insecure-registry", f"{name}:v1")
    assert cosign.verify(public, "saved", "--local-image")
    assert not cosign.verify(foreign, "saved", "--local-image")
