"""Where credentials come from: options, files of docker and containers, helpers; and that none is
shown.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lamina.errors import AuthError, Error, UsageError
from lamina.http.client_options import ClientOptions
from lamina.registry.credentials import Credentials, find_credentials

SECRET = "s3cret-w0rd"


def auth(user: str = "ada", password: str = SECRET) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path


def write(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def docker(home: Path, document: object) -> None:
    write(home / ".docker" / "config.json", document)


def test_nothing_there() -> None:
    assert find_credentials("quay.io", "a/b") is None


def test_options_win(home: Path) -> None:
    docker(home, {"auths": {"quay.io": auth()}})
    options = ClientOptions(username="bob", password="x")
    assert find_credentials("quay.io", "a/b", options) == Credentials("bob", "x")


@pytest.mark.parametrize(
    "key", ["quay.io", "https://quay.io", "https://quay.io/v1/", "http://quay.io/v2", "quay.io/"]
)
def test_docker_file(home: Path, key: str) -> None:
    docker(home, {"auths": {key: auth(), "other.io": auth("eve")}, "HttpHeaders": {}})
    assert find_credentials("quay.io", "a/b") == Credentials("ada", SECRET)
    assert find_credentials("quay.io:5000", "a/b") is None


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io"])
def test_docker_hub_has_several_names(home: Path, key: str) -> None:
    docker(home, {"auths": {key: auth()}})
    assert find_credentials("docker.io", "library/node") == Credentials("ada", SECRET)


def test_the_most_special_key_wins(home: Path) -> None:
    auths = {"quay.io": auth("a"), "quay.io/team": auth("b"), "quay.io/team/app": auth("c")}
    docker(home, {"auths": auths})
    users = {name: find_credentials("quay.io", name) for name in ("x", "team/x", "team/app")}
    assert [found.username for found in users.values() if found] == ["a", "b", "c"]


def test_order_of_files(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [
        home / "explicit.json",
        home / "run" / "containers" / "auth.json",
        home / ".config" / "containers" / "auth.json",
        home / "docker" / "config.json",
    ]
    monkeypatch.setenv("DOCKER_CONFIG", str(home / "docker"))
    for number, path in reversed(list(enumerate(places))):
        write(path, {"auths": {"quay.io": auth(f"user{number}")}})
        if number == 0:
            monkeypatch.setenv("REGISTRY_AUTH_FILE", str(path))
        found = find_credentials("quay.io", "a")
        assert found is not None
        assert found.username == f"user{number}"
    other = home / "other.json"
    write(other, {"auths": {}})
    assert find_credentials("quay.io", "a", ClientOptions(authfile=str(other))) is None


def test_an_explicit_file_must_be_there() -> None:
    with pytest.raises(UsageError, match="no credentials file"):
        find_credentials("quay.io", "a", ClientOptions(authfile="/nonexistent"))


def test_tokens_and_plain_fields(home: Path) -> None:
    docker(
        home,
        {
            "auths": {
                "a.io": {"auth": auth()["auth"], "identitytoken": SECRET},
                "b.io": {"username": "ada", "password": SECRET},
                "c.io": auth("<token>"),
                "d.io": {},
            }
        },
    )
    assert find_credentials("a.io", "x") == Credentials(identity_token=SECRET)
    assert find_credentials("b.io", "x") == Credentials("ada", SECRET)
    assert find_credentials("c.io", "x") == Credentials(identity_token=SECRET)
    assert find_credentials("d.io", "x") is None


Helper = Callable[[str, str], None]


@pytest.fixture
def helper(home: Path, monkeypatch: pytest.MonkeyPatch) -> Helper:
    folder = home / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def create(name: str, script: str) -> None:
        path = folder / f"docker-credential-{name}"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return create


def test_credential_helper(home: Path, helper: Helper) -> None:
    docker(home, {"credHelpers": {"quay.io": "mine"}, "auths": {"quay.io": auth("eve")}})
    answer = json.dumps({"ServerURL": "x", "Username": "ada", "Secret": SECRET})
    helper("mine", f"""[ "$1 $(cat)" = "get quay.io" ] && echo '{answer}'""")
    assert find_credentials("quay.io", "x") == Credentials("ada", SECRET)


def test_credential_store(home: Path, helper: Helper) -> None:
    docker(home, {"credsStore": "store"})
    answer = json.dumps({"Username": "<token>", "Secret": SECRET})
    helper("store", f"""[ "$(cat)" = https://index.docker.io/v1/ ] && echo '{answer}'""")
    assert find_credentials("docker.io", "library/x") == Credentials(identity_token=SECRET)


def test_a_helper_without_credentials(home: Path, helper: Helper) -> None:
    docker(home, {"credsStore": "store"})
    helper("store", "echo credentials not found in native keychain; exit 1")
    assert find_credentials("quay.io", "x") is None


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 3", "failed with code 3"),
        ("echo nonsense", "malformed answer"),
        (f"""echo '{{"Username":7,"Secret":"{SECRET}"}}'""", "malformed answer"),
    ],
)
def test_a_broken_helper(home: Path, helper: Helper, script: str, message: str) -> None:
    docker(home, {"credHelpers": {"quay.io": "mine"}})
    helper("mine", script)
    with pytest.raises(AuthError, match=message) as caught:
        find_credentials("quay.io", "x")
    assert SECRET not in str(caught.value)


def test_a_missing_helper(home: Path) -> None:
    docker(home, {"credHelpers": {"quay.io": "absent"}})
    with pytest.raises(AuthError, match="not installed"):
        find_credentials("quay.io", "x")
    docker(home, {"credHelpers": {"quay.io": "../../bin/sh"}})
    with pytest.raises(UsageError, match="malformed name"):
        find_credentials("quay.io", "x")


@pytest.mark.parametrize(
    "text",
    [
        SECRET,
        f'{{"auths":{{"quay.io":{{"auth":"{SECRET}!"}}}}}}',
        f'{{"auths":{{"quay.io":{{"auth":7,"password":"{SECRET}"}}}}}}',
        json.dumps({"auths": {"quay.io": {"auth": base64.b64encode(SECRET.encode()).decode()}}}),
        '{"auths":{"quay.io":{"auth":"//79"}}}',
        "[" * 100_000,
    ],
)
def test_a_malformed_file_names_itself_and_no_secret(home: Path, text: str) -> None:
    path = home / ".docker" / "config.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(Error) as caught:
        find_credentials("quay.io", "x")
    assert str(path) in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_folder_in_place_of_the_file(home: Path) -> None:
    """As docker makes one when it is told to mount a file that is not there."""
    (home / ".docker" / "config.json").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"config\.json: Is a directory"):
        find_credentials("quay.io", "x")


def test_secrets_are_not_in_a_repr() -> None:
    shown = repr(Credentials("ada", SECRET, SECRET)) + repr(ClientOptions(password=SECRET))
    assert SECRET not in shown
