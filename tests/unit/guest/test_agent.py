"""What a guest opens images with."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.errors import AuthError, NotFoundError, StoreError, UsageError
from lamina.guest import agent
from lamina.guest.relay import find_port
from lamina.oci.reference import parse_reference
from lamina.registry import auth
from lamina.registry.open_repository import open_repository
from tests.support.fake_registry import fake_registry
from tests.support.guest_world import memory_folder

HUB = """
[kbc]
url = "https://kbs.test:8080"
kbs_cert = "PEM"
[image]
image_security_policy = '{"default":[{"type":"reject"}]}'
"""


@pytest.fixture
def work() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=memory_folder()) as name:
        yield Path(name) / "work"


def settings(folder: Path, work: Path, cache: str, evidence: str = "sample") -> agent.GuestSettings:
    path = folder / "initdata.toml"
    path.write_text(
        f'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n"cdh.toml" = """\n{HUB}"""\n'
    )
    return agent.GuestSettings(
        work=work, init_data=str(path), evidence=evidence, cache=cache, cache_only=True
    )


@pytest.mark.parametrize("is_same", [True, False])
def test_a_cache_that_is_called_like_a_registry_gets_no_credentials_for_it(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch, is_same: bool
) -> None:
    with fake_registry() as registry:
        registry.token, registry.login = "secret-token", "ada:correct horse"
        # As if it were on another machine.
        monkeypatch.setattr(auth, "is_loopback", lambda host: False)
        name = registry.host if is_same else "registry.test"
        request = agent.guest_request(
            f"{name}/team/app:1", settings(tmp_path, work, f"http://{registry.host}")
        )
        assert request.client.authfile is not None
        Path(request.client.authfile).write_text(
            json.dumps({"auths": {registry.host: {"auth": "YWRhOmNvcnJlY3QgaG9yc2U="}}})
        )
        reference = parse_reference(request.reference)
        with (
            open_repository(reference, options=request.client) as opened,
            pytest.raises(AuthError),
        ):
            opened.manifest()
        assert registry.seen
        assert not [seen for seen in registry.seen if "authorization" in seen.headers]


@pytest.mark.parametrize("cache", ["cache", "ftp://cache", "http://a:b@cache", "http://c:99999"])
def test_what_is_no_address_of_a_cache_is_refused_before_anything_is_asked(
    tmp_path: Path, work: Path, cache: str
) -> None:
    with pytest.raises(UsageError, match="no address of a cache") as caught:
        agent.guest_request("registry.test/app:1", settings(tmp_path, work, cache))
    assert caught.value.hint == "--cache http://HOST:PORT"
    assert not work.exists()


def test_a_folder_that_others_can_change_and_memory_that_is_swapped_are_refused(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = settings(tmp_path, work, "http://127.0.0.1:1", "tsm")
    work.mkdir()
    work.chmod(0o777)
    with pytest.raises(StoreError, match="cannot be trusted"):
        agent.guest_request("registry.test/app:1", found)
    work.chmod(0o700)

    def refuse() -> None:
        raise StoreError("memory is swapped to a disk")

    monkeypatch.setattr(agent, "refuse_visible_swap", refuse)
    with pytest.raises(StoreError, match="swapped"):
        agent.guest_request("registry.test/app:1", found)


def test_a_port_is_found_by_the_name_that_the_host_gave_it(tmp_path: Path) -> None:
    for number, name in enumerate(("org.qemu.agent", "lamina.cache")):
        (tmp_path / f"vport{number}p1").mkdir()
        (tmp_path / f"vport{number}p1/name").write_text(f"{name}\n")
    assert find_port("lamina.cache", tmp_path) == Path("/dev/vport1p1")
    assert find_port("/dev/ttyS1", tmp_path) == Path("/dev/ttyS1")
    with pytest.raises(NotFoundError, match="no serial port called 'other'"):
        find_port("other", tmp_path)
