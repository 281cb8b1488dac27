"""What init-data says, and what is refused because it does not say enough."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamina.errors import Error, FormatError, StoreError, TrustError
from lamina.guest.anchors import Anchors, parse_anchors
from lamina.guest.policy_keys import with_keys_inside
from lamina.guest.private_storage import refuse_visible_storage, refuse_visible_swap
from lamina.trust.broker.init_data import InitData
from lamina.trust.broker.kbs_packet import ResourcePath, parse_resource

BROKER = '[kbc]\nname = "cc_kbc"\nurl = "https://kbs.test:8080"\nkbs_cert = "PEM"\n'
URI = 'image_security_policy_uri = "kbs:///default/security-policy/test"\n'


def anchors(hub: str, name: str = "cdh.toml") -> Anchors:
    text = f"version = '0.1.0'\nalgorithm = 'sha256'\n[data]\n\"{name}\" = '''\n{hub}'''\n"
    return parse_anchors(InitData.parse(text, "init-data"))


def test_what_the_confidential_data_hub_reads() -> None:
    more = 'authenticated_registry_credentials_uri = "kbs:///default/credential/test"\n'
    more += 'extra_root_certificates = ["A", "B"]\nmax_concurrent_layer_downloads_per_image = 3\n'
    head = "socket = 'unix:///run/cdh.sock'\ncredentials = []\n"
    found = anchors(f"{head}{BROKER}[image]\n{URI}{more}")
    assert found == Anchors(
        "https://kbs.test:8080",
        "PEM",
        parse_resource("kbs:///default/security-policy/test"),
        parse_resource("kbs:///default/credential/test"),
        ("A", "B"),
    )
    assert anchors(f"{BROKER}[image]\nimage_security_policy = '{{}}'\n").policy == "{}"


@pytest.mark.parametrize(
    ("hub", "kind", "words"),
    [
        (f"[image]\n{URI}", TrustError, "by which certificate the key broker is known"),
        (f"{BROKER.replace('https', 'http')}[image]\n{URI}", TrustError, "by which certificate"),
        (f"{BROKER}[image]\n", TrustError, "names no policy of images"),
        (BROKER, TrustError, "names no policy of images"),
        (f"{BROKER}[image]\n{URI}image_security_policy = '{{}}'\n", FormatError, "two policies"),
        (f"{BROKER}[image]\n{URI}sigstore_config_uri = 'kbs:///a/b/c'\n", FormatError, "not known"),
        (f"{BROKER}[image]\n{URI}extra_root_certificates = [1]\n", FormatError, "no list of texts"),
        (f"{BROKER}image = 1\n", Error, "image"),
        (f"{BROKER}[image]\nimage_security_policy_uri = 1\n", FormatError, "no text"),
        (f"{BROKER}[image]\nimage_security_policy_uri = 'kbs:///a'\n", Error, "kbs"),
        ("kbc = \n", FormatError, "no TOML"),
    ],
)
def test_what_says_too_little_or_too_much_is_refused(
    hub: str, kind: type[Error], words: str
) -> None:
    with pytest.raises(kind, match=words):
        anchors(hub)


def test_init_data_without_the_file_is_refused() -> None:
    with pytest.raises(TrustError, match=r"has no cdh\.toml"):
        anchors(BROKER, "aa.toml")


def fetch(resource: ResourcePath) -> bytes:
    return str(resource).encode()


def test_keys_of_a_policy_come_from_the_broker() -> None:
    policy = b'{"transports":{"docker":{"a":[{"type":"sigstoreSigned","keyPath":"kbs:///a/b/c"},'
    policy += b'{"keyPaths":["kbs:///a/b/d"]}]}}}'
    found = with_keys_inside(policy, fetch)
    assert b'"keyData":"a2JzOi8vL2EvYi9j"' in found
    assert b'"keyDatas":["a2JzOi8vL2EvYi9k"]' in found
    assert b"keyPath" not in found


@pytest.mark.parametrize("path", [b'"/etc/key.pub"', b"1", b'["/etc/key.pub"]', b'"kbs:///x"'])
def test_a_key_in_a_file_of_the_guest_is_refused(path: bytes) -> None:
    with pytest.raises(Error):
        with_keys_inside(b'{"default":[{"keyPath":' + path + b"}]}", fetch)


def test_only_memory_and_encrypted_disks_are_private(tmp_path: Path) -> None:
    refuse_visible_storage(Path("/dev/shm"))
    with pytest.raises(StoreError, match="which the host reads too"):
        refuse_visible_storage(Path("/proc"))


@pytest.mark.parametrize("name", ["/dev/null", "gone\\040away"])
def test_memory_that_is_swapped_to_a_disk_of_the_host_is_not_private(
    tmp_path: Path, name: str
) -> None:
    swaps = tmp_path / "swaps"
    head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    swaps.write_text(head)
    refuse_visible_swap(swaps)
    refuse_visible_swap(tmp_path / "none")
    swaps.write_text(f"{head}{tmp_path / name}  file\t\t1048572\t\t0\t\t-2\n")
    with pytest.raises(StoreError, match="memory is swapped to"):
        refuse_visible_swap(swaps)
