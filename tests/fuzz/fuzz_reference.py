"""References, URLs, platforms and WWW-Authenticate headers from any text."""

from __future__ import annotations

from lamina.errors import Error, UsageError
from lamina.http.http1 import check_request
from lamina.http.url import parse_url
from lamina.http.www_authenticate import parse_challenges
from lamina.oci.platform import parse_platform
from lamina.oci.reference import parse_reference

_BASE = parse_url("https://registry.example:5000/v2/a/blobs/x")


def target(data: bytes) -> None:
    """Read the bytes as each kind of text; what was taken round-trips or can be sent."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        reference = parse_reference(text)
    except UsageError:
        pass
    else:
        assert parse_reference(str(reference)) == reference
    try:
        url = parse_url(text, _BASE)
    except Error:
        pass
    else:
        check_request(url.target, {"Host": url.origin.authority})
    try:
        platform = parse_platform(text)
    except UsageError:
        pass
    else:
        assert parse_platform(str(platform)) == platform
    for challenge in parse_challenges(data.decode("latin-1")):
        assert challenge.scheme
        assert len(challenge.parameters) <= len(data)


def seeds() -> list[bytes]:
    """One of each form."""
    digest = "sha256:" + "0" * 64
    texts = [
        "node",
        "localhost:5000/a/b:tag",
        f"quay.io/a/b:t@{digest}",
        "[::1]:5000/x",
        "docker://docker.io/library/node:20",
        f"oci:/path/to:tag@{digest}",
        "oci-archive:a.tar:x/y:1",
        "docker-archive:a.tar:node:20",
        "https://user@host/x?y=z#f",
        "//host:80/%2f",
        "linux/arm/v7",
        'Bearer realm="https://a/token",service="r",scope="repository:a/b:pull,push"',
        'Basic realm="a\\"b", Digest qop=auth, Negotiate abc==',
    ]
    return [text.encode() for text in texts]
