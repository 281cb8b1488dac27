from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.secret import SecretBox
from tests.unit.trust.keys_in_code import make_key

from lamina.errors import Error, FormatError, TrustError, UsageError
from lamina.trust.crypto import cosign_key, secretbox
from lamina.trust.crypto.secret import Secret

TEA = Secret(b"tea")
KEY = make_key("P-256")


@settings(max_examples=60, deadline=None)
@given(
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=24, max_size=24),
    st.binary(max_size=400),
)
def test_the_box_is_that_of_nacl(key: bytes, nonce: bytes, plain: bytes) -> None:
    box = secretbox.seal(key, nonce, plain)
    assert box == SecretBox(key).encrypt(plain, nonce).ciphertext
    assert secretbox.open_box(key, nonce, box) == plain
    changed = bytes((box[0] ^ 1,)) + box[1:]
    for wrong in (changed, box[:-1], b""):
        with pytest.raises(TrustError):
            secretbox.open_box(key, nonce, wrong)


@pytest.mark.parametrize("label", cosign_key.LABELS)
@pytest.mark.parametrize("cost", cosign_key.COSTS)
def test_three_costs_and_two_labels(label: str, cost: int) -> None:
    pem = cosign_key.write_key(KEY, TEA, cost=cost, label=label)
    assert cosign_key.is_cosign_key(pem)
    assert cosign_key.read_key(pem, "k", TEA).public().der() == KEY.public().der()


def changed(**changes: object) -> bytes:
    pem = cosign_key.write_key(KEY, TEA, cost=32768)
    document = json.loads(base64.b64decode(b"".join(pem.splitlines()[1:-1])))
    for path, value in changes.items():
        target = document
        *parents, last = path.split("__")
        for name in parents:
            target = target[name]
        target[last] = value
    body = base64.b64encode(json.dumps(document).encode()).decode()
    label = cosign_key.LABELS[0]
    return f"-----BEGIN {label}-----\n{body}\n-----END {label}-----\n".encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"kdf__params__N": 16384}, {"kdf__params__N": 262144}, {"kdf__params__N": 1 << 40},
        {"kdf__params__N": "65536"}, {"kdf__params__r": 16}, {"kdf__params__p": 2},
        {"kdf__name": "argon2"}, {"cipher__name": "aes"}, {"cipher__nonce": "AAAA"}, {"more": 1},
        {"kdf__salt": 5}, {"ciphertext": "!"}, {"kdf__params": None}, {"kdf": []},
    ],
)  # fmt: skip
def test_other_parameters_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        cosign_key.read_key(changed(**changes), "k", TEA)


def test_wrong_passphrases_and_changes() -> None:
    with pytest.raises(TrustError, match="passphrase"):
        cosign_key.read_key(changed(), "k", Secret(b"coffee"))
    with pytest.raises(TrustError):
        cosign_key.read_key(changed(ciphertext="AAAA"), "k", TEA)
    with pytest.raises(UsageError):
        cosign_key.write_key(KEY, TEA, cost=1024)
    for data in (b"", b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n", KEY.public().pem()):
        with pytest.raises(FormatError):
            cosign_key.read_key(data, "k", TEA)


def test_an_empty_passphrase_is_one() -> None:
    pem = cosign_key.write_key(cosign_key.generate(), Secret(b""), cost=32768)
    assert cosign_key.read_key(pem, "k", Secret(b"")).kind == "P-256"


@given(st.binary(max_size=200))
def test_hostile_bytes(data: bytes) -> None:
    label = cosign_key.LABELS[0].encode()
    body = base64.b64encode(data)
    for text in (data, b"-----BEGIN %s-----\n%s\n-----END %s-----" % (label, body, label)):
        with pytest.raises(Error):
            cosign_key.read_key(text, "k", TEA)
