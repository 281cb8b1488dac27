"""Options that verbs share: every verb that takes a reference has the same ones."""

from __future__ import annotations

import argparse
import io
from argparse import Namespace
from typing import Any

import pytest

from lamina.cli.dispatch import verb_parser
from lamina.cli.options import (
    byte_size,
    client_options,
    pair_options,
    platform_name,
    split_credentials,
)
from lamina.cli.verbs import VERBS, find_verb
from lamina.errors import UsageError

REGISTRY = {
    *("--platform", "--creds", "--authfile", "--ca-file", "--hosts-dir"),
    *("--plain-http", "--no-tls-verify"),
}
OUTPUT = {"--quiet", "-q", "--verbose", "--log-format", "--help", "-h"}
WITHOUT_REFERENCE = {
    "key",
    "kbs",
    "guest",
    "umount",
    "mounts",
    "self-test",
    "version",
    "completion",
}
STORE_ONLY = {
    *("gc", "unpin", "images", "rm", "ps", "exec", "logs", "stop", "kill", "wait"),
    # Its metrics are those of a store too.
    "service",
}
WITHOUT_JSON = {"run", "exec", "logs", "kill", "guest"}
SIGNING = {"sign", "verify", "policy"}
WITHOUT_STORE = WITHOUT_REFERENCE | SIGNING | {"encrypt", "decrypt", "convert", "index", "copy"}


@pytest.mark.parametrize("name", [verb.name for verb in VERBS])
def test_common_options_are_everywhere(name: str) -> None:
    verb = find_verb(name)
    assert verb is not None
    names = verb_parser(verb).option_names
    assert names >= OUTPUT
    wanted = REGISTRY - {"--platform"} if name in SIGNING else REGISTRY
    assert (names & REGISTRY) == (set() if name in WITHOUT_REFERENCE | STORE_ONLY else wanted)
    assert ("--store" in names) == (name not in WITHOUT_STORE)
    assert ("--json" in names) == (name not in WITHOUT_JSON)


def arguments(**changes: Any) -> Namespace:
    plain = {
        "creds": None,
        "plain_http": False,
        "ca_file": None,
        "tls_verify": True,
        "authfile": None,
        "hosts_dir": None,
        "src_creds": None,
        "dst_creds": None,
    }
    return Namespace(**{**plain, **changes})


def test_defaults_leave_the_client_alone() -> None:
    from lamina.http.client_options import ClientOptions

    assert client_options(arguments()) == ClientOptions()


def test_client_options() -> None:
    found = client_options(
        arguments(
            creds="me:a:b", plain_http=True, ca_file="/ca", tls_verify=False, authfile="/auth"
        )
    )
    assert (found.username, found.password) == ("me", "a:b")
    assert (found.plain_http, found.ca_file, found.verify_tls, found.authfile) == (
        True,
        "/ca",
        False,
        "/auth",
    )


def test_credentials_for_each_side() -> None:
    source, target = pair_options(arguments(creds="both:1", dst_creds="target:2"))
    assert (source.username, source.password) == ("both", "1")
    assert (target.username, target.password) == ("target", "2")


def test_password_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("secret\nmore\n"))
    assert split_credentials("me") == ("me", "secret")
    with pytest.raises(UsageError):
        split_credentials(":x")


def test_a_password_is_in_no_repr() -> None:
    assert "secret" not in repr(client_options(arguments(creds="me:secret")))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("65536", 65536),
        ("128K", 131072),
        ("128KiB", 131072),
        ("1m", 1 << 20),
        ("2G", 2 << 30),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert byte_size(text) == size


@pytest.mark.parametrize("text", ["", "K", "x", "-1", "1.5M", "1T", "١"])
def test_malformed_sizes(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        byte_size(text)


def test_platforms() -> None:
    assert platform_name("linux/arm/v7") == "linux/arm/v7"
    for text in ("linux", "linux/", "a/b/c/d", ""):
        with pytest.raises(argparse.ArgumentTypeError):
            platform_name(text)


def test_a_password_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("se:cret\nthe next line\n"))
    verb = find_verb("copy")
    assert verb is not None
    args = verb_parser(verb).parse(["--creds", "me", "a", "b"])
    found = [*pair_options(args), client_options(args)]
    assert {(options.username, options.password) for options in found} == {("me", "se:cret")}
