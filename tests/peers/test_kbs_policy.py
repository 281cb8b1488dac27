"""The policy for trustee that the page prints, by Rego's own engine (Open Policy Agent)."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest

from lamina.trust.broker.protocol import Claims
from tests.support.installed import ROOT
from tests.support.tools import require_peer

PAGE = ROOT / "docs" / "how-to" / "key-broker.md"
IMAGE, OTHER = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32
PATH = ["team", "image-kek", "7"]
AFFIRMED = {"submods": {"cpu0": {"ear.status": "affirming"}}}
SAMPLE = {
    "submods": {
        "cpu0": {
            "ear.status": "contraindicated",
            "ear.veraison.annotated-evidence": {"sample": {"svn": "1"}},
        }
    }
}


def page_policy() -> str:
    (policy,) = re.findall(r"^```rego\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert '"sha256:..."' in policy
    return policy.replace("sha256:...", IMAGE)


def naive_policy(release: str) -> str:
    return (
        f"package policy\nimport rego.v1\ndefault allow := false\nallow if {{ {release} >= 7 }}\n"
    )


def allows(
    policy: str,
    query: dict[str, str],
    token: dict[str, Any] = AFFIRMED,
    path: list[str] = PATH,
) -> bool:
    """As trustee asks: a policy that fails gives nothing."""
    data = {"plugin": "resource", "resource-path": path, "query": query}
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "policy.rego": policy,
            "data.json": json.dumps(data),
            "input.json": json.dumps(token),
        }
        for name, content in files.items():
            Path(folder, name).write_text(content)
        done = subprocess.run(
            [
                *(require_peer("opa"), "eval", "--format", "json"),
                *("--data", "policy.rego", "--data", "data.json", "--input", "input.json"),
                "data.policy.allow",
            ],
            cwd=folder,
            capture_output=True,
            text=True,
        )
    answer = json.loads(done.stdout)
    assert "result" in answer or "errors" in answer, done.stderr
    return [row["expressions"][0]["value"] for row in answer.get("result", [])] == [True]


def sent(claims: Claims) -> dict[str, str]:
    return dict(parse_qsl(claims.query().removeprefix("?")))


@pytest.mark.parametrize("release", [7, 8, 10, 70, 100, (1 << 53) - 1])
def test_the_policy_of_the_page(release: int) -> None:
    assert allows(page_policy(), sent(Claims(IMAGE, release)))


@pytest.mark.parametrize(
    "claims",
    [Claims(IMAGE, 6), Claims(IMAGE, 1), Claims(IMAGE, 0), Claims(IMAGE), Claims(), Claims("", 7),
     Claims(OTHER, 7)],
)  # fmt: skip
def test_what_the_policy_of_the_page_refuses(claims: Claims) -> None:
    assert not allows(page_policy(), sent(claims))


@pytest.mark.parametrize(
    "signed", ["", "7", '"7"', '{"release":"7"}', '{"release":[7]}', '{"release":null}', "{}", "{"]
)
def test_statements_of_another_form_are_refused(signed: str) -> None:
    assert not allows(page_policy(), {"image-digest": IMAGE, "signed": signed})


def test_other_resources_and_evidence_are_refused() -> None:
    query = sent(Claims(IMAGE, 7))
    assert not allows(page_policy(), query, path=["team", "image-kek", "8"])
    assert not allows(page_policy(), query, SAMPLE)
    assert not allows(page_policy(), query, {})


def test_the_trial_with_samples() -> None:
    line = 'input.submods.cpu0["ear.veraison.annotated-evidence"].sample'
    assert f"`{line}`" in PAGE.read_text()
    affirming = 'input.submods.cpu0["ear.status"] == "affirming"'
    policy = page_policy()
    assert affirming in policy
    policy = policy.replace(affirming, line)
    assert allows(policy, sent(Claims(IMAGE, 7)), SAMPLE)
    assert not allows(policy, sent(Claims(IMAGE, 6)), SAMPLE)


@pytest.mark.parametrize(
    "release", ["data.query.release", "data.query.signed.release", 'data.query["release"]']
)
def test_a_comparison_with_what_is_no_number_gives_nothing(release: str) -> None:
    """A text passes any such comparison; what Lamina sends has none there."""
    policy = naive_policy(release)
    assert allows(naive_policy("data.query.release"), {"release": "1"}), "the trap is real"
    for number in (1, 6, 7, 10):
        assert not allows(policy, sent(Claims(IMAGE, number)))
