"""The options of key brokers: what verbs make of them, and where a passphrase comes from."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from lamina.cli.broker_options import broker_provider, store_passphrase
from lamina.cli.dispatch import verb_parser
from lamina.cli.verbs import VERBS, find_verb
from lamina.errors import FormatError, UsageError
from lamina.opening.open_trust import key_sources
from lamina.opening.request import OpenRequest
from lamina.trust.broker.evidence import TsmEvidence
from lamina.trust.crypto.secret import Secret

INIT_DATA = 'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n'
BROKER = ["--kbs", "https://127.0.0.1:1", "--kbs-ca", "ca.crt", "--kbs-init-data", "initdata.toml"]


def parsed(verb: str, *words: str) -> Namespace:
    found = find_verb(verb)
    assert found is not None
    return verb_parser(found).parse_args(words)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "initdata.toml").write_text(INIT_DATA)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_who_has_no_broker_does_not_pay_for_its_modules() -> None:
    code = (
        "import sys; from lamina.cli.broker_options import brokers;"
        "from argparse import Namespace; assert brokers(Namespace(kbs=None)) == {};"
        "print([name for name in sys.modules if '.trust.broker' in name or name == 'tomllib'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_verb_that_asks_a_broker_can_tell_it_init_data() -> None:
    for verb in VERBS:
        names = verb_parser(verb).option_names
        assert ("--kbs" in names) == ("--kbs-init-data" in names), verb.name


def test_init_data_is_sent_and_held_against_the_report(folder: Path) -> None:
    provider = broker_provider(parsed("ls", *BROKER, "--kbs-evidence", "tsm", "oci:x", "/"))
    assert provider is not None
    assert provider.client.init_data is not None
    assert provider.client.init_data.text == INIT_DATA
    assert isinstance(provider.client.evidence, TsmEvidence)
    assert provider.client.evidence.init_data == provider.client.init_data
    (folder / "initdata.toml").write_text("nothing")
    with pytest.raises(FormatError, match="initdata"):
        broker_provider(parsed("ls", *BROKER, "oci:x", "/"))


@pytest.mark.parametrize("verb", ["mount", "run"])
def test_paths_are_for_a_process_in_another_folder(verb: str, folder: Path) -> None:
    """And what the mount service is given makes the same provider there."""
    words = [*BROKER, "oci:x", "mnt"] if verb == "mount" else [*BROKER, "oci:x"]
    args = parsed(verb, *words)
    module = importlib.import_module(f"lamina.cli.verbs.{verb}")
    request = module.run_request if verb == "run" else module.mount_spec
    image = OpenRequest.from_json(request(args).image.to_json())
    os.chdir("/")
    (provider,) = key_sources(image).values()
    assert provider.client.init_data.text == INIT_DATA  # type: ignore[attr-defined]


def test_where_the_passphrase_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "passphrase"
    file.write_text("of the file\n")
    monkeypatch.setenv("LAMINA_KBS_PASSWORD", "of the environment")
    with file.open("rb") as opened:
        args = parsed("kbs", "list", "--passphrase-fd", str(opened.fileno()))
        assert store_passphrase(args) == Secret(b"of the file")
    assert "LAMINA_KBS_PASSWORD" not in os.environ, "taken whatever is used"
    args = parsed("kbs", "list", "--passphrase-file", str(file))
    assert store_passphrase(args) == Secret(b"of the file")
    monkeypatch.setenv("LAMINA_KBS_PASSWORD", "of the environment")
    assert store_passphrase(parsed("kbs", "list")) == Secret(b"of the environment")
    for words in (
        ["--passphrase-fd", "0", "--passphrase-file", str(file)],
        ["--passphrase-fd", "-1"],
        ["--passphrase-fd", "987654"],
    ):
        with pytest.raises(UsageError):
            store_passphrase(parsed("kbs", "list", *words))
