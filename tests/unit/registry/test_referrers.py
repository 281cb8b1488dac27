"""What refers to a manifest: with the referrers API, without it, and in a layout folder."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.errors import FetchError, IntegrityError, NotFoundError, UsageError
from lamina.http.client_options import ClientOptions
from lamina.oci import manifest as m
from lamina.oci.manifest import Descriptor, Manifest
from lamina.oci.reference import parse_reference
from lamina.registry.client import RegistryRepository
from lamina.registry.layout import LayoutRepository
from lamina.registry.referrers import MAX_REFERRERS, fallback_tag, list_referrers, push_referrer
from lamina.registry.repository import Repository
from tests.support import fake_registry as fake
from tests.support.fake_registry import FakeRegistry

KIND = "application/vnd.example.note"


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with fake.fake_registry() as registry:
        yield registry


@pytest.fixture
def repository(registry: FakeRegistry) -> Iterator[RegistryRepository]:
    reference = parse_reference(f"docker://{registry.host}/a/b")
    with RegistryRepository(reference, ClientOptions(attempts=1)) as repository:
        yield repository


def push_image(repository: Repository) -> Descriptor:
    """Push an image without layers as ``v1``."""
    config = m.describe(m.OCI_CONFIG, b"{}")
    repository.push_blob(config, io.BytesIO(b"{}"))
    manifest = Manifest(schema_version=2, media_type=m.OCI_MANIFEST, config=config)
    return repository.push_manifest("v1", m.OCI_MANIFEST, m.encode(manifest))


def note(repository: Repository, subject: Descriptor, text: str = "") -> Manifest:
    """Return a manifest that refers to an image."""
    empty = m.describe(m.OCI_EMPTY, b"{}")
    repository.push_blob(empty, io.BytesIO(b"{}"))
    return Manifest(
        schema_version=2,
        media_type=m.OCI_MANIFEST,
        artifact_type=KIND,
        config=empty,
        subject=subject,
        annotations={"text": text},
    )


def test_a_registry_with_the_api_needs_no_tag(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    registry.referrers_page = 2
    image = push_image(repository)
    assert list_referrers(repository, image.digest) == ()
    pushed = [push_referrer(repository, note(repository, image, str(n))) for n in range(5)]
    found = list_referrers(repository, image.digest)
    assert [entry.digest for entry in found] == [one.digest for one in pushed]
    assert {entry.artifact_type for entry in found} == {KIND}
    assert fallback_tag(image.digest) not in registry.manifests
    assert registry.count("GET", "/referrers/") == 1 + 3


def test_a_registry_without_the_api_gets_the_tag(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    image = push_image(repository)
    pushed = [push_referrer(repository, note(repository, image, str(n))) for n in range(2)]
    push_referrer(repository, note(repository, image, "1"), tag="named")
    assert [e.digest for e in list_referrers(repository, image.digest)] == [
        one.digest for one in pushed
    ]
    _, data = registry.manifests[fallback_tag(image.digest)]
    assert [entry["annotations"]["text"] for entry in json.loads(data)["manifests"]] == ["0", "1"]
    assert registry.manifests["named"] == registry.manifests[pushed[1].digest]


ANSWERS = {
    **{str(status): fake.status(status) for status in (400, 401, 403, 405, 406, 410, 500, 501)},
    "html": fake.status(200, {"Content-Type": "text/html"}, b"<html>welcome</html>"),
    "empty": fake.status(200),
    "object": fake.status(200, body=b"{}"),
    "null": fake.status(200, body=b'{"schemaVersion":2,"manifests":null}'),
    "list": fake.status(200, body=b'{"schemaVersion":2,"manifests":[]}'),
    "image": fake.status(200, body=b'{"schemaVersion":2,"config":{},"layers":[]}'),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_whatever_is_answered_in_place_of_a_list_is_none(
    answer: str,
    registry: FakeRegistry,
    repository: RegistryRepository,
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry.rule("GET", "/referrers/", ANSWERS[answer], times=99)
    image = push_image(repository)
    assert list_referrers(repository, image.digest) == ()
    assert list_referrers(repository, image.digest) == ()
    assert len(caplog.records) == (answer not in ("null", "list"))
    # What is pushed there is found there.
    pushed = [push_referrer(repository, note(repository, image, text)) for text in "ab"]
    found = list_referrers(repository, image.digest)
    assert [entry.digest for entry in found] == [one.digest for one in pushed]


@pytest.mark.parametrize("answer", [*ANSWERS, "the image"])
def test_what_is_under_the_tag_in_place_of_a_list_is_none(
    answer: str,
    registry: FakeRegistry,
    repository: RegistryRepository,
    caplog: pytest.LogCaptureFixture,
) -> None:
    image = push_image(repository)
    if answer == "the image":  # as GitLab answers, and as cosign copy leaves it behind
        registry.manifests[fallback_tag(image.digest)] = registry.manifests["v1"]
    else:
        registry.rule("GET", "/manifests/sha256-", ANSWERS[answer], times=1)
    assert list_referrers(repository, image.digest) == ()
    assert len(caplog.records) == (answer not in ("null", "list"))
    pushed = push_referrer(repository, note(repository, image))
    assert [entry.digest for entry in list_referrers(repository, image.digest)] == [pushed.digest]


def test_no_answer_at_all_is_not_none() -> None:
    with fake.fake_registry() as registry:
        reference = parse_reference(f"docker://{registry.host}/a/b")
        with RegistryRepository(reference, ClientOptions(attempts=1)) as repository:
            image = push_image(repository)
            registry.rule("GET", "/referrers/", lambda exchange: exchange.reset(), times=9)
            with pytest.raises(FetchError):
                list_referrers(repository, image.digest)


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_a_list_that_cannot_be_read_now_is_not_written_over(
    status: int, registry: FakeRegistry, repository: RegistryRepository
) -> None:
    image = push_image(repository)
    push_referrer(repository, note(repository, image, "theirs"))
    registry.rule("GET", "/manifests/sha256-", fake.status(status))
    with pytest.raises(FetchError):
        push_referrer(repository, note(repository, image, "mine"))
    assert len(list_referrers(repository, image.digest)) == 1


def test_a_list_that_was_damaged_on_its_way_is_not_written_over(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    image = push_image(repository)
    push_referrer(repository, note(repository, image, "theirs"))
    media_type, data = registry.manifests[fallback_tag(image.digest)]
    headers = {"Content-Type": media_type, "Docker-Content-Digest": m.describe("", data).digest}
    damaged = data.replace(b"theirs", b"thairs")
    registry.rule("GET", "/manifests/sha256-", fake.status(200, headers, damaged))
    with pytest.raises(IntegrityError):
        push_referrer(repository, note(repository, image, "mine"))
    assert registry.manifests[fallback_tag(image.digest)] == (media_type, data)


def test_entries_of_a_list_that_nobody_understands_stay(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    image = push_image(repository)
    strange = {"mediaType": "x/y", "digest": "sha384:" + "0" * 96, "size": 1, "mine": True}
    listed = {"schemaVersion": 2, "mediaType": m.OCI_INDEX, "manifests": [strange], "more": 1}
    tag = fallback_tag(image.digest)
    registry.manifests[tag] = (m.OCI_INDEX, json.dumps(listed).encode())
    pushed = push_referrer(repository, note(repository, image))
    document = json.loads(registry.manifests[tag][1])
    assert document["manifests"][0] == strange
    assert document["manifests"][1]["digest"] == pushed.digest
    assert document["more"] == 1


def test_of_too_many_the_first_are_taken(
    registry: FakeRegistry, repository: RegistryRepository, caplog: pytest.LogCaptureFixture
) -> None:
    image = push_image(repository)
    numbers = iter(range(1000))

    def endless(exchange: fake.Exchange) -> bool:
        number = next(numbers)
        entries = [
            {"mediaType": m.OCI_MANIFEST, "digest": f"sha256:{number:032}{n:032}", "size": 7}
            for n in range(100)
        ]
        page = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
        link = f'</v2/a/b/referrers/x?n={number}>; rel="next"'
        return exchange.answer(200, page, {"Link": link})

    registry.rule("GET", "/referrers/", endless, times=1000)
    assert len(list_referrers(repository, image.digest)) == MAX_REFERRERS
    assert registry.count("GET", "/referrers/") == 3
    assert f"more than {MAX_REFERRERS}" in caplog.text


def test_empty_pages_that_never_end(
    registry: FakeRegistry, repository: RegistryRepository, caplog: pytest.LogCaptureFixture
) -> None:
    image = push_image(repository)
    numbers = iter(range(1000))

    def endless(exchange: fake.Exchange) -> bool:
        link = f'</v2/a/b/referrers/x?n={next(numbers)}>; rel="next"'
        return exchange.answer(200, b'{"schemaVersion":2,"manifests":[]}', {"Link": link})

    registry.rule("GET", "/referrers/", endless, times=200)
    assert list_referrers(repository, image.digest) == ()
    assert registry.count("GET", "/referrers/") == 64
    assert "more than 64 pages" in caplog.text


def test_a_page_that_names_itself_ends(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    image = push_image(repository)
    path = f"/v2/a/b/referrers/{image.digest}"
    page = b'{"schemaVersion":2,"manifests":[]}'
    link = {"Link": f'<{path}>; rel="next"'}
    registry.rule("GET", "/referrers/", fake.status(200, link, page), times=9)
    assert list_referrers(repository, image.digest) == ()
    assert registry.count("GET", "/referrers/") == 1


def test_a_layout_folder_lists_both(tmp_path: Path) -> None:
    reference = parse_reference(f"oci:{tmp_path}/l")
    with LayoutRepository(reference, write=True) as repository:
        image = push_image(repository)
        pushed = push_referrer(repository, note(repository, image, "kept"))
        (listed,) = list_referrers(repository, image.digest)
        assert (listed.digest, listed.annotations) == (pushed.digest, {"text": "kept"})
        assert repository.resolve().digest == image.digest
        with pytest.raises(NotFoundError) as failure:
            repository.resolve("absent")
        assert failure.value.hint == "it has v1"
    entries = json.loads((tmp_path / "l" / "index.json").read_bytes())["manifests"]
    names = [entry.get("annotations", {}).get(m.REF_NAME) for entry in entries]
    assert names == ["v1", fallback_tag(image.digest), None]
    assert entries[2]["digest"] == pushed.digest
    assert entries[2]["artifactType"] == KIND


def test_what_refers_to_nothing_is_refused(repository: RegistryRepository) -> None:
    with pytest.raises(UsageError, match="refers to nothing"):
        push_referrer(
            repository,
            Manifest(schema_version=2, config=m.describe(m.OCI_EMPTY, b"{}")),
        )
