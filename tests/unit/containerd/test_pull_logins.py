"""The logins of pulls: how long they are kept, for what, and who is told."""

from __future__ import annotations

import base64
from pathlib import Path

import msgspec
import pytest

from lamina.containerd.pull_logins import AGE_S, MOST, PullLogins, login_of
from lamina.http.client_options import ClientOptions
from lamina.registry.credentials import Credentials, find_credentials
from lamina.registry.pull_login import PullLogin

pytest.importorskip("google.protobuf")

PLACE = "a.example/team/app"
OLD, NEW = PullLogin("ada", "old"), PullLogin("ada", "new")


def pulled(logins: PullLogins, image: str, login: PullLogin, called: str = "") -> None:
    with logins.pulling(image, login) as names:
        names.append(called or f"id of {image}")


def known(logins: PullLogins, place: str = PLACE) -> PullLogin | None:
    data = logins.find(place)
    return msgspec.json.decode(data, type=PullLogin) if data else None


def test_a_pull_that_fails_leaves_the_login_before() -> None:
    logins = PullLogins("")
    with logins.pulling(f"{PLACE}:1", OLD):
        assert known(logins) == OLD
    assert known(logins) is None
    pulled(logins, f"{PLACE}:1", OLD)
    with logins.pulling(f"{PLACE}:1", NEW):
        assert known(logins) == NEW
    assert known(logins) == OLD
    pulled(logins, f"{PLACE}:1", NEW)
    assert known(logins) == NEW
    assert known(logins, "a.example/team/other") is None


def test_pulls_at_a_time() -> None:
    logins = PullLogins("")
    with logins.pulling(f"{PLACE}:1", OLD) as first:
        pulled(logins, f"{PLACE}:2", NEW)
        first.append("id of 1")
    assert known(logins) == NEW
    logins.forget(f"{PLACE}:2")
    assert known(logins) == NEW
    logins.forget("id of 1")
    assert known(logins) is None


def test_it_goes_with_its_last_image_with_age_and_with_too_many() -> None:
    now = [0.0]
    logins = PullLogins("", lambda: now[0])
    pulled(logins, f"{PLACE}:1", OLD)
    pulled(logins, f"{PLACE}:2", OLD)
    logins.forget(f"id of {PLACE}:1")
    assert known(logins) == OLD
    logins.forget(f"{PLACE}:2")
    assert known(logins) is None
    pulled(logins, f"{PLACE}:1", OLD)
    now[0] = AGE_S
    assert known(logins) is None
    for number in range(MOST + 1):
        pulled(logins, f"a.example/{number}", OLD)
    assert known(logins, "a.example/0") is None
    assert known(logins, "a.example/1") == OLD


def test_what_a_request_says() -> None:
    from lamina.containerd.wire.images_pb2 import AuthConfig

    pair = base64.b64encode(b"ada:old\0").decode()
    assert login_of(AuthConfig(username="ada", password="old"), PLACE) == OLD
    assert login_of(AuthConfig(auth=pair), PLACE) == OLD
    assert login_of(AuthConfig(auth="?"), PLACE) is None
    assert login_of(AuthConfig(), PLACE) is None
    assert login_of(AuthConfig(identity_token="t"), PLACE) == PullLogin("<token>", "t")
    assert login_of(AuthConfig(auth=pair, server_address="https://b.example"), PLACE) is None
    hub = AuthConfig(auth=pair, server_address="https://index.docker.io/v1/")
    assert login_of(hub, "busybox") == OLD
    assert login_of(hub, PLACE) is None
    assert "old" not in repr(OLD)


def test_a_newer_one_is_asked_for_at_the_socket(tmp_path: Path) -> None:
    logins = PullLogins(str(tmp_path / "logins"))
    old, new = Credentials("ada", "old"), Credentials("ada", "new")
    pulled(logins, f"{PLACE}:1", OLD)
    file = tmp_path / "auth.json"
    file.write_text('{"auths": {}}')
    options = logins.client(ClientOptions(authfile=str(file)), PLACE)
    assert (options.username, options.password) == ("ada", "old")
    assert find_credentials("a.example", "team/app", options) == old
    # Nobody listens yet.
    assert find_credentials("a.example", "team/app", options, old) is None
    with logins.answering():
        assert Path(logins.socket).stat().st_mode & 0o777 == 0o600
        assert find_credentials("a.example", "team/app", options, old) is None
        pulled(logins, f"{PLACE}:1", NEW)
        assert find_credentials("a.example", "team/app", options, old) == new
        unknown = logins.client(ClientOptions(authfile=str(file)), "a.example/x")
        assert find_credentials("a.example", "x", unknown) is None
