"""A policy whose keys are in the key broker, as confidential containers write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from lamina.errors import TrustError
from lamina.trust import strict_json
from lamina.trust.broker.kbs_packet import ResourcePath, parse_resource
from lamina.trust.signatures.policy import MAX_POLICY_BYTES

_PREFIX: Final = "kbs:///"
Fetch = Callable[[ResourcePath], bytes]


def with_keys_inside(policy: bytes, fetch: Fetch) -> bytes:
    """Return a policy in which each ``keyPath`` of the form ``kbs:///…`` is the key itself.

    Whether it is a policy otherwise, who reads it says.  Raises FormatError for what is no JSON,
    TrustError for a path in the guest, where the host may have put a file, and what *fetch* raises.
    """
    document = strict_json.parse_object(policy, "policy of images", MAX_POLICY_BYTES)
    _walk(document, fetch)
    return strict_json.compact(document)


def _walk(value: Any, fetch: Fetch) -> None:
    if isinstance(value, list):
        for each in value:
            _walk(each, fetch)
    elif isinstance(value, dict):
        for each in value.values():
            _walk(each, fetch)
        for name, new in (("keyPath", "keyData"), ("keyPaths", "keyDatas")):
            if name in value:
                paths = value.pop(name)
                listed = paths if isinstance(paths, list) else [paths]
                keys = [_key(path, fetch) for path in listed]
                value[new] = keys if isinstance(paths, list) else keys[0]


def _key(path: Any, fetch: Fetch) -> str:
    if not isinstance(path, str) or not path.startswith(_PREFIX):
        raise TrustError(
            "the policy of images names a key by a file",
            hint="give it as keyData, or as kbs:///REPOSITORY/TYPE/TAG",
        )
    return strict_json.encode_base64(fetch(parse_resource(path)))
