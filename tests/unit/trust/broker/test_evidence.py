"""Evidence of a machine by the kernel's reports, and the init-data that they are bound to."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.unit.trust.broker.test_snp_report import MILAN, made_up_report, table

from lamina.errors import (
    FormatError,
    KernelError,
    NotFoundError,
    TrustError,
    UnsupportedError,
    UsageError,
)
from lamina.trust.broker import evidence as e
from lamina.trust.broker.init_data import InitData, fitted, read_init_data
from lamina.trust.broker.snp_report import REPORT_BYTES, encode_report

VCEK = "63da758d-e664-4564-adc5-f4b93be8accd"
INIT_DATA = """algorithm = "sha384"
version = "0.1.0"

[data]
"cdh.toml" = '''
[kbc]
name = "cc_kbc"
'''
"""


class FakeTsm:
    """A folder that behaves like configfs-tsm: entries come with their attributes."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
        self.root, self.provider, self.writers = root, provider, 1
        self.certificates, self.bound, self.quote_version = b"", b"", 4
        calls = {**vars(os), "mkdir": self.make, "rmdir": self.remove}
        monkeypatch.setattr(e, "os", SimpleNamespace(**calls))
        monkeypatch.setattr(e, "_write", self.write)

    def make(self, path: str, mode: int) -> None:
        Path(path).mkdir(mode)
        for name, text in (("provider", self.provider), ("generation", "0")):
            (Path(path) / name).write_text(f"{text}\n")

    def write(self, path: str, name: str, data: bytes) -> None:
        assert name == "inblob"
        assert len(data) == 64
        folder = Path(path)
        (folder / name).write_bytes(data)
        (folder / "outblob").write_bytes(self.report(data))
        (folder / "auxblob").write_bytes(self.certificates)
        generation = int((folder / "generation").read_text()) + self.writers
        (folder / "generation").write_text(f"{generation}\n")

    def report(self, data: bytes) -> bytes:
        """A report that is bound to some init-data."""
        if self.provider == "sev_guest":
            report = bytearray(made_up_report(3, MILAN))
            report[0x50:0x90], report[0xC0:0xE0] = data, self.bound.ljust(32, b"\0")
            return bytes(report)
        head = self.quote_version.to_bytes(2, "little").ljust(48, b"q")
        head += b"t" * {5: 6}.get(self.quote_version, 0)
        return head + b"b" * 184 + self.bound.ljust(48, b"\0") + b"r" * 200 + data

    def remove(self, path: str) -> None:
        for item in Path(path).iterdir():
            item.unlink()
        Path(path).rmdir()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "keep").touch()
    return tmp_path / "report"


def left(folder: Path) -> list[str]:
    return [item.name for item in folder.iterdir()]


def test_a_quote_of_tdx(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTsm(folder.parent, monkeypatch, "tdx_guest")
    log = folder.parent / "CCEL"
    source = e.TsmEvidence(str(folder), event_log=str(log))
    assert source.tee == "tdx"
    quote = base64.b64encode(fake.report(b"d" * 48 + bytes(16))).decode()
    assert source.collect(b"d" * 48) == ("tdx", {"quote": quote, "cc_eventlog": None})
    log.write_bytes(b"boot events")
    encoded = base64.b64encode(b"boot events").decode()
    assert source.collect(b"d" * 48) == ("tdx", {"quote": quote, "cc_eventlog": encoded})
    monkeypatch.setattr(e, "MAX_EVENT_LOG_BYTES", 10)
    with pytest.raises(KernelError, match="event log has more than 10 bytes"):
        source.collect(b"")
    assert left(folder) == ["keep"]


def test_a_report_of_snp(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """trustee reads an object, and refuses the raw report in base64."""
    fake = FakeTsm(folder.parent, monkeypatch, "sev_guest")
    source = e.TsmEvidence(str(folder))
    assert source.tee == "snp"
    tee, found = source.collect(b"d" * 48)
    report = fake.report(b"d" * 48 + bytes(16))
    assert (tee, found) == ("snp", {"attestation_report": encode_report(report)})
    assert found["attestation_report"]["report_data"] == [*b"d" * 48, *bytes(16)]
    fake.certificates = table((VCEK, b"\x05\x06"))
    chain = [{"cert_type": "VCEK", "data": [5, 6]}]
    assert source.collect(b"")[1]["cert_chain"] == chain
    assert left(folder) == ["keep"]


def test_a_report_of_snp_that_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTsm(folder.parent, monkeypatch, "sev_guest")
    monkeypatch.setattr(fake, "report", lambda _: b"report")
    with pytest.raises(FormatError, match=f"6 bytes, not {REPORT_BYTES}"):
        e.TsmEvidence(str(folder)).collect(b"")


@pytest.mark.parametrize(
    ("provider", "version"), [("sev_guest", 3), ("tdx_guest", 4), ("tdx_guest", 5)]
)
@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_reports_are_bound_to_init_data(
    provider: str, version: int, algorithm: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest is cut, or filled with zeros, to the field of the report."""
    text = INIT_DATA.replace("sha384", algorithm)
    source = e.TsmEvidence(str(folder), InitData.parse(text, "init-data"))
    fake = FakeTsm(folder.parent, monkeypatch, provider)
    fake.quote_version = version
    digest = hashlib.new(algorithm, text.encode()).digest()
    fake.bound = digest[: 32 if provider == "sev_guest" else 48]
    source.collect(b"d" * 48)
    fake.bound = bytes([fake.bound[0] ^ 1]) + fake.bound[1:]
    with pytest.raises(TrustError, match="started with other init-data") as caught:
        source.collect(b"d" * 48)
    assert digest.hex() in str(caught.value)
    assert "byte for byte" in str(caught.value.hint)
    fake.bound = b""
    with pytest.raises(TrustError, match="started with no init-data"):
        source.collect(b"d" * 48)


def test_quotes_of_other_versions_are_for_the_verifier(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeTsm(folder.parent, monkeypatch, "tdx_guest")
    fake.quote_version = 9
    e.TsmEvidence(str(folder), InitData.parse(INIT_DATA, "init-data")).collect(b"d" * 48)


def test_init_data_is_kept_as_it_is(tmp_path: Path) -> None:
    """Its digest is over the whole text, line ends and all."""
    file = tmp_path / "initdata.toml"
    data = INIT_DATA.replace("\n", "\r\n").encode()
    file.write_bytes(data)
    found = read_init_data(str(file))
    assert found.encode() == {"format": "toml", "body": data.decode()}
    assert found.digest() == hashlib.sha384(data).digest()


def test_digests_fit_their_field() -> None:
    assert fitted(b"abcdef", 4) == b"abcd"
    assert fitted(b"abcdef", 8) == b"abcdef\0\0"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no toml",
        "[" * 100_000,
        INIT_DATA.replace("0.1.0", "0.2.0"),
        INIT_DATA.replace("sha384", "md5"),
        INIT_DATA.replace("[data]", "[other]"),
        INIT_DATA + "number = 5\n",
        INIT_DATA + "#" * (128 << 10),
    ],
)
def test_init_data_that_is_none(text: str, tmp_path: Path) -> None:
    file = tmp_path / "initdata.toml"
    file.write_text(text)
    with pytest.raises(FormatError, match=str(file)):
        read_init_data(str(file))


def test_init_data_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_init_data(str(tmp_path / "absent"))
    with pytest.raises(UsageError):
        read_init_data(str(tmp_path))
    (tmp_path / "packed").write_bytes(b"\x1f\x8b\x08\xff")
    with pytest.raises(FormatError) as caught:
        read_init_data(str(tmp_path / "packed"))
    assert "gzip" in str(caught.value.hint)


def test_reports_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match="no report of its CPU"):
        e.TsmEvidence(str(tmp_path / "absent" / "x")).collect(b"")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "keep").touch()
    fake = FakeTsm(tmp_path, monkeypatch, "tdx_guest")
    source = e.TsmEvidence(str(tmp_path / "report"))
    monkeypatch.setattr(e, "MAX_REPORT_BYTES", 20)
    with pytest.raises(KernelError, match="more than 20 bytes"):
        source.collect(b"")
    monkeypatch.setattr(e, "MAX_REPORT_BYTES", 1000)
    fake.writers = 2
    with pytest.raises(KernelError, match="another process"):
        source.collect(b"")
    fake.provider = "other_guest"
    with pytest.raises(UnsupportedError, match="other_guest"):
        source.collect(b"")
    assert [item.name for item in (tmp_path / "report").iterdir()] == ["keep"]


def test_sources_by_name() -> None:
    assert e.make_source("tsm") == e.TsmEvidence()
    assert e.make_source("sample", "m") == e.SampleEvidence("m")
