"""Programs that give credentials, called as a kubelet calls them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from lamina.errors import Error, UnsupportedError, UsageError
from lamina.http.client_options import ClientOptions
from lamina.oci.reference import parse_reference
from lamina.registry.client import RegistryRepository
from lamina.registry.credential_providers import Login, duration_s
from tests.support.credential_provider import API, Provider
from tests.support.fake_registry import fake_registry


def test_it_is_called_as_a_kubelet_calls_it(tmp_path: Path) -> None:
    provider = Provider(tmp_path)
    provider.answers("Image", **{"a.example": ("ada", "secret")})
    assert provider.opened().find("a.example/team/app") == Login("ada", "secret")
    request = {"kind": "CredentialProviderRequest", "apiVersion": API}
    request["image"] = "a.example/team/app"
    assert provider.calls() == [[request, ["get-credentials"], "north"]]
    assert "secret" not in repr(Login("ada", "secret"))


@pytest.mark.parametrize(
    ("key", "duration", "asked"),
    [
        ("Image", None, ["a.example/x", "a.example/y", "b.example/x"]),
        ("Registry", "1h", ["a.example/x", "b.example/x"]),
        ("Global", "1h30m", ["a.example/x"]),
        ("Global", "0s", ["a.example/x", "a.example/x", "a.example/y", "b.example/x"]),
    ],
)
def test_how_long_and_for_what_an_answer_is_kept(
    tmp_path: Path, key: str, duration: str | None, asked: list[str]
) -> None:
    now = [100.0]
    provider = Provider(tmp_path)
    provider.answers(key, duration, **{"*.example": ("ada", "secret")})
    providers = provider.opened(lambda: now[0])
    for image in ("a.example/x", "a.example/x", "a.example/y", "b.example/x"):
        assert providers.find(image) == Login("ada", "secret")
    assert [call[0]["image"] for call in provider.calls()] == asked
    now[0] += 13 * 3600
    providers.find("a.example/x")
    assert len(provider.calls()) == len(asked) + 1


@pytest.mark.parametrize(
    ("pattern", "image", "fits"),
    [
        ("*.example", "a.example/x", True),
        ("*.example", "a.b.example/x", False),
        ("a*.b.example", "ab.b.example/x", True),
        ("a.example:5000", "a.example:5000/x", True),
        ("a.example", "a.example:5000/x", False),
        ("https://a.example/team", "a.example/team/x", True),
        ("a.example/team", "a.example/other/x", False),
    ],
)
def test_which_images_it_is_asked_about(
    tmp_path: Path, pattern: str, image: str, fits: bool
) -> None:
    provider = Provider(tmp_path, pattern)
    provider.answers("Image", **{pattern: ("ada", "secret")})
    assert (provider.opened().find(image) is not None) == fits
    assert len(provider.calls()) == fits


def test_the_most_exact_login_is_taken(tmp_path: Path) -> None:
    provider = Provider(tmp_path)
    logins = {"a.example": ("all", "1"), "a.example/team": ("team", "2"), "b.example": ("b", "3")}
    provider.answers("Registry", **logins)
    providers = provider.opened()
    assert providers.find("a.example/team/x") == Login("team", "2")
    assert providers.find("a.example/x") == Login("all", "1")


@pytest.mark.parametrize("answer", ["", "{}", '{"cacheKeyType": "Image", "cacheDuration": "x"}'])
def test_no_answer_is_no_login_and_is_not_shown(
    tmp_path: Path, answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    provider = Provider(tmp_path)
    (tmp_path / "answer").write_text(answer + "secret")
    with caplog.at_level(logging.DEBUG):
        assert provider.opened().find("a.example/x") is None
    assert "cloud-login gives a malformed answer" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("more", "kind", "words"),
    [
        ({"name": "missing"}, UsageError, "missing is not in"),
        ({"name": "../x"}, UsageError, "whose name is no file"),
        ({"apiVersion": "v9"}, UsageError, "of the version v9"),
        ({"defaultCacheDuration": "soon"}, UsageError, "'soon' is no duration"),
        ({"matchImages": 1}, UsageError, "cannot be used"),
        ({"tokenAttributes": {"requireServiceAccount": True}}, UnsupportedError, "tokens of pods"),
    ],
)
def test_configurations_that_are_refused(
    tmp_path: Path, more: dict[str, Any], kind: type[Error], words: str
) -> None:
    provider = Provider(tmp_path)
    provider.write(**more)
    with pytest.raises(kind, match=words):
        provider.opened()


def test_a_configuration_in_yaml(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    provider = Provider(tmp_path)
    provider.config.write_text(yaml.safe_dump(json.loads(provider.config.read_text())))
    provider.answers("Image", **{"a.example": ("ada", "secret")})
    assert provider.opened().find("a.example/x") == Login("ada", "secret")


def test_durations() -> None:
    assert [duration_s(text) for text in ("0", "1h2m3s", "1.5h", "500ms")] == [0, 3723, 5400, 0.5]


def test_a_login_that_has_expired_is_renewed_under_a_reader(tmp_path: Path) -> None:
    """The registry wants another one than it did; who reads goes on, and asks once."""
    with fake_registry() as registry:
        registry.token, registry.token_lifetime_s = "first", 300
        registry.login = "ada:old"
        digest = registry.add_blob(b"content")
        provider = Provider(tmp_path, registry.host)
        provider.answers("Registry", "12h", **{registry.host: ("ada", "old")})
        options = ClientOptions(credential_providers=(str(provider.config), str(tmp_path)))
        place = parse_reference(f"docker://{registry.host}/team/app")
        with RegistryRepository(place, options) as repository:
            assert repository.read_range(digest, 0, 7) == b"content"
            registry.token, registry.login = "second", "ada:new"
            provider.answers("Registry", "12h", **{registry.host: ("ada", "new")})
            assert repository.read_range(digest, 0, 7) == b"content"
            assert repository.read_range(digest, 0, 7) == b"content"
        assert len(provider.calls()) == 2
