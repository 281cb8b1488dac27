from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

import pytest

from lamina.cli.key_options import key_passphrase
from lamina.trust.encryption.recipients import portable_key


@pytest.mark.parametrize(
    ("text", "later"),
    [
        ("k.pem", "{here}/k.pem"),
        ("jwe:k.pem", "jwe:{here}/k.pem"),
        ("k.pem:pass=a//b/../c/", "{here}/k.pem:pass=a//b/../c/"),
        ("pkcs7:k.pem:pass=x:file=y", "pkcs7:{here}/k.pem:pass=x:file=y"),
        ("k.pem:file=words", "{here}/k.pem:file={here}/words"),
        ("provider:kbs:k.pem", "provider:kbs:k.pem"),
    ],
)
def test_keys_for_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, later: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert portable_key(text) == later.format(here=tmp_path)


@pytest.mark.parametrize("scheme", ["", "jwe:"])
def test_a_passphrase_from_a_descriptor(scheme: str) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"secret//x\n")
    os.close(writer)
    try:
        text = portable_key(f"{scheme}/k.pem:fd={reader}")
    finally:
        with contextlib.suppress(OSError):
            os.close(reader)
    assert text == f"{scheme}/k.pem:pass=secret//x"


def test_a_key_without_a_passphrase_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COSIGN_PASSWORD", raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert key_passphrase("Passphrase", twice=True).reveal() == b""
    assert "the new key has none" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert key_passphrase("Passphrase", twice=True).reveal() == b""
    assert capsys.readouterr().err == ""
