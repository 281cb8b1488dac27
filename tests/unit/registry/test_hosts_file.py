"""``hosts.toml`` means what it means to containerd (2.4.2, ``core/remotes/docker/config``)."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamina.errors import FormatError, UsageError
from lamina.registry.hosts_file import CAPABILITIES, find_hosts, parse_hosts

FOLDER = Path("/etc/certs.d/reg.example")

FULL = b"""
server = "https://reg.example"
capabilities = ["push"]
ca = "own.crt"

[host."http://near.example:5000"]
  capabilities = ["Pull", "resolve"]
  dial_timeout = "1m1.5s"
[host."http://near.example:5000".header]
  x-one = "1"
  x-two = ["2", "3"]

[host."far.example/prefix"]
  ca = ["/abs/a.crt", "b.crt"]
  client = [["c.pem", "k.pem"], "both.pem"]
  skip_verify = true

[host."https://own.example/v2/proxy"]
  override_path = true
[host."https://own.example/a/v2/"]
  skip_verify = false
  client = "one.pem"
"""


def test_everything_that_a_file_can_say() -> None:
    near, far, own, slash, server = parse_hosts(FULL, "reg.example", FOLDER)
    assert (near.scheme, near.authority, near.path) == ("http", "near.example:5000", "/v2")
    assert near.capabilities == {"pull", "resolve"}
    assert near.headers == (("x-one", "1"), ("x-two", "2"), ("x-two", "3"))
    assert near.connect_timeout_s == 61.5
    assert near.skip_verify is None
    assert (far.scheme, far.authority, far.path) == ("https", "far.example", "/prefix/v2")
    assert far.ca_files == ("/abs/a.crt", f"{FOLDER}/b.crt")
    assert far.client_pairs == (
        (f"{FOLDER}/c.pem", f"{FOLDER}/k.pem"),
        (f"{FOLDER}/both.pem", None),
    )
    assert far.skip_verify is True
    assert far.capabilities == CAPABILITIES
    assert own.path == "/v2/proxy"
    assert (slash.path, slash.skip_verify) == ("/a/v2", False)
    assert slash.client_pairs == ((f"{FOLDER}/one.pem", None),)
    assert (server.authority, server.capabilities) == ("reg.example", {"push"})
    assert server.ca_files == (f"{FOLDER}/own.crt",)


def test_mirrors_are_told_whose_images_are_meant() -> None:
    hosts = parse_hosts(FULL, "reg.example", FOLDER)
    assert [host.query for host in hosts] == ["ns=reg.example"] * 4 + [""]
    hosts = parse_hosts(b'[host."https://registry-1.docker.io"]', "docker.io", FOLDER)
    assert [host.query for host in hosts] == ["", ""]
    [server] = parse_hosts(b'server = "https://docker.io"', "docker.io", FOLDER)
    assert server.query == "ns=docker.io"


def test_without_a_server_the_registry_is_asked_at_last() -> None:
    hosts = parse_hosts(b'[host."http://m"]\n', "reg.example:5000", FOLDER)
    assert [(host.scheme, host.authority) for host in hosts] == [
        ("http", "m"),
        ("", "reg.example:5000"),
    ]
    [docker] = parse_hosts(b"# nothing", "docker.io", FOLDER)
    assert (docker.scheme, docker.authority) == ("https", "registry-1.docker.io")


def test_hosts_are_in_the_order_of_the_file() -> None:
    names = [f"h{number}" for number in (3, 1, 2, 9, 0)]
    text = "".join(f'[host."{name}"]\n[host."{name}".header]\nx = "1"\n' for name in names)
    hosts = parse_hosts(text.encode(), "r.example", FOLDER)
    assert [host.authority for host in hosts] == [*names, "r.example"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"server =", "is no TOML"),
        (b"\xff", "is no TOML"),
        (b"[" * 5000, "is no TOML"),
        (b"server = 1", "its server is no text"),
        (b'host = "x"', "its host is no table"),
        (b'host.x = "y"', "x is no table"),
        (b'capabilities = ["fly"]', "unknown capability 'fly'"),
        (b"capabilities = [1]", "no list of texts"),
        (b'[host."ftp://x"]\n', "no address"),
        (b'[host."http://"]\n', "no address"),
        (b'[host."http://x:99999"]\n', "no address"),
        (b'[host."http://[x"]\n', "no address"),
        (b"ca = 1", "a ca that is no list"),
        (b"client = 1", "no list of files"),
        (b'client = [["a"]]', "no pair"),
        (b'client = [["a", "b", "c"]]', "no pair"),
        (b'skip_verify = "yes"', "neither true nor false"),
        (b"override_path = 1", "neither true nor false"),
        (b"header = 1", "no table"),
        (b'header = {x = "a\\r\\nb"}', "no request can have"),
        (b'header = {"x y" = "a"}', "no request can have"),
        (b'dial_timeout = "soon"', "no duration"),
        (b"dial_timeout = 5", "no duration"),
    ],
)
def test_what_is_malformed(text: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        parse_hosts(text, "r.example", FOLDER)


def write(folder: Path, host: str) -> None:
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(f'[host."http://{host}"]\n')


def test_which_folder_counts(tmp_path: Path) -> None:
    """The port with underscores, then as it is, then the default, of the first root with one."""
    first, second = tmp_path / "first", tmp_path / "second"
    roots = (first, second)
    assert find_hosts(roots, "r.example:5000") is None
    write(second / "_default", "default")
    for number, (folder, host) in enumerate(
        [
            (second / "r.example:5000", "colon"),
            (second / "r.example_5000_", "underscores"),
            (first / "_default", "first"),
        ]
    ):
        before = find_hosts(roots, "r.example:5000")
        assert before is not None, number
        assert before[0].authority == ("default", "colon", "underscores")[number]
        write(folder, host)
    found = find_hosts(roots, "r.example:5000")
    assert found is not None
    assert found[0].authority == "first"
    (first / "_default/hosts.toml").unlink()
    assert find_hosts(roots, "r.example:5000") is None, "certificates alone are no hosts"
    (first / "_default/hosts.toml").mkdir()
    with pytest.raises(UsageError, match="cannot read"):
        find_hosts(roots, "r.example:5000")
