"""The client at a broker that answers as trustee does."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.trustee import FakeTrustee
from tests.unit.trust.broker.test_evidence import INIT_DATA, VCEK, FakeTsm
from tests.unit.trust.broker.test_snp_report import table

from lamina.errors import NotFoundError, TrustError
from lamina.trust.broker import evidence as e
from lamina.trust.broker.client import KbsClient
from lamina.trust.broker.evidence import EvidenceSource, SampleEvidence
from lamina.trust.broker.init_data import InitData
from lamina.trust.broker.kbs_packet import parse_resource
from lamina.trust.broker.protocol import Claims

KEY = b"k" * 32
IMAGE = "sha256:" + "ab" * 32
RESOURCE = parse_resource("kbs:///team/image-kek/7")
HANDSHAKE = ["POST auth", "POST attest", "GET resource"]


@pytest.fixture
def trustee() -> FakeTrustee:
    return FakeTrustee({"team/image-kek/7": KEY})


def client(trustee: FakeTrustee, evidence: EvidenceSource | None = None) -> KbsClient:
    return KbsClient(trustee, evidence or SampleEvidence())  # type: ignore[arg-type]


@pytest.mark.parametrize("provider", ["sev_guest", "tdx_guest"])
def test_machines_attest_themselves(
    provider: str, trustee: FakeTrustee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "keep").touch()
    fake = FakeTsm(tmp_path, monkeypatch, provider)
    fake.certificates = table((VCEK, b"certificate"))
    source = e.TsmEvidence(str(tmp_path / "report"), event_log=str(tmp_path / "CCEL"))
    assert client(trustee, source).fetch(RESOURCE).reveal() == KEY


def test_a_refusal_by_policy_costs_one_attestation(trustee: FakeTrustee) -> None:
    trustee.policy = lambda path, query: False
    one = client(trustee)
    with pytest.raises(TrustError, match="policy does not allow"):
        one.fetch(RESOURCE)
    assert trustee.requests == HANDSHAKE
    with pytest.raises(TrustError, match="policy does not allow"):
        one.fetch(RESOURCE)
    assert trustee.requests == [*HANDSHAKE, "GET resource"]


def test_what_is_not_there_costs_one_attestation(trustee: FakeTrustee) -> None:
    other = parse_resource("kbs:///team/image-kek/8")
    with pytest.raises(NotFoundError, match="kbs:///team/image-kek/8, or a problem of its own"):
        client(trustee).fetch(other)
    assert trustee.requests == HANDSHAKE


def test_sessions_that_were_lost_are_renewed(trustee: FakeTrustee) -> None:
    one = client(trustee)
    one.fetch(RESOURCE)
    for lose in (trustee.restart, trustee.expire_tokens):
        lose()
        trustee.requests.clear()
        assert one.fetch(RESOURCE).reveal() == KEY
        assert trustee.requests == ["GET resource", *HANDSHAKE]


def test_a_token_that_is_refused_when_it_is_new_is_not_made_again(trustee: FakeTrustee) -> None:
    """As that of evidence without a CPU."""
    trustee.forgets_tokens = True
    with pytest.raises(TrustError, match="TokenVerifierError"):
        client(trustee).fetch(RESOURCE)
    assert trustee.requests == HANDSHAKE


def test_a_broker_that_forgets_at_once_is_asked_twice(trustee: FakeTrustee) -> None:
    """It may be one of several behind one name."""
    trustee.forgets_sessions = True
    with pytest.raises(TrustError, match="TokenNotFound"):
        client(trustee).fetch(RESOURCE)
    assert trustee.requests == HANDSHAKE * 2


def test_init_data_is_sent_as_it_is(trustee: FakeTrustee) -> None:
    one = client(trustee)
    one.fetch(RESOURCE)
    one.close()
    one.init_data = InitData.parse(INIT_DATA, "init-data")
    one.fetch(RESOURCE)
    sent = [document["init-data"] for document in trustee.attestations]
    assert sent == [None, {"format": "toml", "body": INIT_DATA}]


def test_evidence_that_is_not_believed(trustee: FakeTrustee) -> None:
    class Liar:
        tee = "snp"

        def collect(self, report_data: bytes) -> tuple[str, dict[str, object]]:
            return "snp", {"attestation_report": "AAAA"}

    with pytest.raises(TrustError, match="does not believe the snp evidence"):
        client(trustee, Liar()).fetch(RESOURCE)
    assert trustee.requests == HANDSHAKE[:2]


@pytest.mark.parametrize(
    ("claims", "hint"),
    [
        (Claims(IMAGE), "--policy"),
        (Claims(), "--policy"),
        (Claims(IMAGE, 7), "who runs the broker"),
    ],
)
def test_hints_after_a_refusal(claims: Claims, hint: str, trustee: FakeTrustee) -> None:
    trustee.policy = lambda path, query: False
    with pytest.raises(TrustError) as caught:
        client(trustee).fetch(RESOURCE, claims)
    assert hint in str(caught.value.hint)


def test_the_release_is_no_text_of_its_own(trustee: FakeTrustee) -> None:
    """Rego orders every text above every number: ``data.query.release >= 7`` held for all."""
    seen: list[dict[str, str]] = []
    trustee.policy = lambda path, query: seen.append(query) is None
    one = client(trustee)
    one.fetch(RESOURCE, Claims(IMAGE, 6))
    one.fetch(RESOURCE, Claims(IMAGE))
    one.fetch(RESOURCE)
    assert seen == [{"image-digest": IMAGE, "signed": '{"release":6}'}, {"image-digest": IMAGE}, {}]
