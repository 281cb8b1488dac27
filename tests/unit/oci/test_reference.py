"""References: what docker and skopeo users write, and what they get told when it makes no sense."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.errors import UsageError
from lamina.oci.reference import Reference, full_name, parse_reference

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("node", "docker://docker.io/library/node:latest"),
        ("node:20-slim", "docker://docker.io/library/node:20-slim"),
        ("bitnami/redis", "docker://docker.io/bitnami/redis:latest"),
        ("index.docker.io/node:1", "docker://docker.io/library/node:1"),
        ("docker.io/a/b/c:1", "docker://docker.io/a/b/c:1"),
        ("docker:24", "docker://docker.io/library/docker:24"),
        ("localhost/x", "docker://localhost/x:latest"),
        ("localhost:5000/x", "docker://localhost:5000/x:latest"),
        ("localhost:5000/x:y", "docker://localhost:5000/x:y"),
        ("127.0.0.1:5000/a/b:1", "docker://127.0.0.1:5000/a/b:1"),
        ("[::1]:5000/x:1", "docker://[::1]:5000/x:1"),
        ("HOST/x", "docker://HOST/x:latest"),
        ("quay.io/a/b_c__d-e.f:v1.0", "docker://quay.io/a/b_c__d-e.f:v1.0"),
        (f"quay.io/a/b@{DIGEST}", f"docker://quay.io/a/b@{DIGEST}"),
        (f"quay.io/a/b:t@{DIGEST}", f"docker://quay.io/a/b:t@{DIGEST}"),
        ("docker://node", "docker://docker.io/library/node:latest"),
        ("oci:/tmp/x", "oci:/tmp/x"),
        ("oci:relative/x:latest", "oci:relative/x:latest"),
        ("oci:/tmp/x:docker.io/library/node:20", "oci:/tmp/x:docker.io/library/node:20"),
        (f"oci:/tmp/x@{DIGEST}", f"oci:/tmp/x@{DIGEST}"),
        (f"oci:/tmp/x:t@{DIGEST}", f"oci:/tmp/x:t@{DIGEST}"),
        ("oci-archive:/tmp/x.tar:t", "oci-archive:/tmp/x.tar:t"),
        ("docker-archive:/tmp/x.tar", "docker-archive:/tmp/x.tar"),
        ("docker-archive:/tmp/x.tar:node", "docker-archive:/tmp/x.tar:node:latest"),
        ("docker-archive:/tmp/x.tar:a.b:5/c:d", "docker-archive:/tmp/x.tar:a.b:5/c:d"),
    ],
)
def test_parse(text: str, expected: str) -> None:
    reference = parse_reference(text)
    assert str(reference) == expected
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "write NAME"),
        ("docker://", "write NAME"),
        ("quay.io/", "write NAME"),
        ("Node", "lower-case: library/node"),
        ("quay.io/a//b", "components"),
        ("node:", "a tag has"),
        ("node:.x", "a tag has"),
        ("node:" + "x" * 129, "a tag has"),
        ("node@sha256:abc", "64 lower-case hex"),
        ("node@" + DIGEST.upper(), "64 lower-case hex"),
        ("-x.y/z", "HOST/NAME"),
        ("a:123456/z", "HOST/NAME"),
        ("oci:", "oci:PATH"),
        ("oci::x", "oci:PATH"),
        ("oci:/x:", "first colon"),
        ("oci:/x:a b", "first colon"),
        ("oci:/x@sha256:abc", "64 lower-case hex"),
        (f"docker-archive:/x:node@{DIGEST}@{DIGEST}", "NAME:TAG"),
        ("docker-archive:/x:Node", "lower-case"),
        ("https://quay.io/a/b", "docker://HOST"),
        ("./x", "oci:./x"),
        ("/srv/x", "oci:/srv/x"),
        ("containers-storage:x", "skopeo copy"),
        ("docker-daemon:x:y", "skopeo copy"),
        ("dir:/x", "skopeo copy"),
        ("a/" * 200 + "b", "shorter"),
    ],
)
def test_refuse(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_reference(text)
    assert caught.value.hint is not None
    assert hint in caught.value.hint


@pytest.mark.parametrize("text", ["no\nde", "a\0b", "x" * 9000])
def test_refuse_what_cannot_be_printed(text: str) -> None:
    with pytest.raises(UsageError):
        parse_reference(text)


def test_the_digest_decides() -> None:
    assert parse_reference(f"a/b:t@{DIGEST}").version == DIGEST
    assert parse_reference("a/b:t").version == "t"
    assert parse_reference("oci:/x").version is None


def test_names() -> None:
    assert parse_reference("node").name == "docker.io/library/node"
    assert parse_reference("oci:/x:t").name == "/x"
    assert full_name("node") == "docker.io/library/node:latest"
    assert str(Reference("oci", path="/x").with_version(tag="t")) == "oci:/x:t"


@given(st.text(max_size=60))
def test_any_text_parses_and_round_trips_or_is_a_usage_error(text: str) -> None:
    try:
        reference = parse_reference(text)
    except UsageError as error:
        assert error.hint or len(text) > 60 or not text.isprintable()
        return
    assert parse_reference(str(reference)) == reference
