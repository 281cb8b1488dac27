"""Private keys of cosign: PKCS#8 in a secretbox, the box's key from a passphrase by scrypt.

The PEM label is ``ENCRYPTED SIGSTORE PRIVATE KEY``, in older files
``ENCRYPTED COSIGN PRIVATE KEY``.  Only the three costs that cosign itself takes are read.
"""

from __future__ import annotations

import base64
import hashlib
import os
from typing import Final

from lamina.errors import FormatError, TrustError, UsageError
from lamina.trust import strict_json
from lamina.trust.crypto import secretbox
from lamina.trust.crypto.keys import PrivateKey, load_private_key, require_cryptography
from lamina.trust.crypto.secret import Secret

PASSWORD_VARIABLE: Final = "COSIGN_PASSWORD"  # noqa: S105 - the name of a variable
LABELS: Final = ("ENCRYPTED SIGSTORE PRIVATE KEY", "ENCRYPTED COSIGN PRIVATE KEY")
COSTS: Final = (32768, 65536, 131072)
COST: Final = 65536
BLOCK_SIZE: Final = 8
PARALLELISM: Final = 1
SALT_BYTES: Final = 32
_MAX_MEMORY_BYTES: Final = 256 << 20


def generate() -> PrivateKey:
    """Return a new key as cosign makes it: ECDSA on P-256."""
    require_cryptography()
    from cryptography.hazmat.primitives.asymmetric import ec

    return PrivateKey(ec.generate_private_key(ec.SECP256R1()), "new key")


def is_cosign_key(data: bytes) -> bool:
    """Tell whether a PEM file has a private key of cosign's form."""
    return any(f"-----BEGIN {label}-----".encode() in data for label in LABELS)


def write_key(
    key: PrivateKey, passphrase: Secret, *, cost: int = COST, label: str = LABELS[0]
) -> bytes:
    """Return the key as PEM, encrypted with the passphrase."""
    from cryptography.hazmat.primitives import serialization as s

    salt, nonce = os.urandom(SALT_BYTES), os.urandom(secretbox.NONCE_BYTES)
    der = key.key.private_bytes(s.Encoding.DER, s.PrivateFormat.PKCS8, s.NoEncryption())
    box = secretbox.seal(derive_key(passphrase, salt, cost), nonce, der)
    document = {
        "kdf": {
            "name": "scrypt",
            "params": {"N": cost, "r": BLOCK_SIZE, "p": PARALLELISM},
            "salt": strict_json.encode_base64(salt),
        },
        "cipher": {"name": "nacl/secretbox", "nonce": strict_json.encode_base64(nonce)},
        "ciphertext": strict_json.encode_base64(box),
    }
    body = strict_json.encode_base64(strict_json.compact(document))
    lines = "\n".join(body[i : i + 64] for i in range(0, len(body), 64))
    return f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n".encode()


def read_key(data: bytes, source: str, passphrase: Secret) -> PrivateKey:
    """Open a private key.  Raises FormatError; TrustError for a wrong passphrase."""
    require_cryptography()
    what = f"key {source}"
    document = strict_json.parse_object(_unarmoured(data, what), what)
    strict_json.expect_keys(document, what, ("kdf", "cipher", "ciphertext"))
    kdf = strict_json.expect_keys(document["kdf"], what, ("name", "params", "salt"))
    cipher = strict_json.expect_keys(document["cipher"], what, ("name", "nonce"))
    if kdf["name"] != "scrypt" or cipher["name"] != "nacl/secretbox":
        raise FormatError(f"the {what} is encrypted in an unknown way")
    parameters = strict_json.expect_keys(kdf["params"], what, ("N", "r", "p"))
    cost = parameters["N"]
    if cost not in COSTS or (parameters["r"], parameters["p"]) != (BLOCK_SIZE, PARALLELISM):
        raise FormatError(f"the {what} has scrypt parameters that cosign does not take")
    salt = strict_json.decode_base64(kdf["salt"], f"salt of the {what}")
    nonce = strict_json.decode_base64(
        cipher["nonce"], f"nonce of the {what}", secretbox.NONCE_BYTES
    )
    box = strict_json.decode_base64(document["ciphertext"], f"ciphertext of the {what}")
    try:
        der = secretbox.open_box(derive_key(passphrase, salt, cost), nonce, box)
    except TrustError:
        raise TrustError(
            f"the private key {source} cannot be opened with this passphrase",
            hint=f"give it in {PASSWORD_VARIABLE}",
        ) from None
    return load_private_key(der, source)


def _unarmoured(data: bytes, what: str) -> bytes:
    text = data.decode("ascii", "replace")
    for label in LABELS:
        _, begin, rest = text.partition(f"-----BEGIN {label}-----")
        body, end, _ = rest.partition(f"-----END {label}-----")
        if begin and end:
            try:
                return base64.b64decode("".join(body.split()), validate=True)
            except ValueError:
                break
    raise FormatError(f"the {what} is no private key of cosign")


def derive_key(passphrase: Secret, salt: bytes, cost: int) -> bytes:
    """32 bytes by scrypt; UsageError for a cost that is not one of the three."""
    if cost not in COSTS:
        raise UsageError(f"the scrypt cost {cost} is not one that cosign takes")
    return hashlib.scrypt(
        passphrase.reveal(),
        salt=salt,
        n=cost,
        r=BLOCK_SIZE,
        p=PARALLELISM,
        maxmem=_MAX_MEMORY_BYTES,
        dklen=secretbox.KEY_BYTES,
    )
