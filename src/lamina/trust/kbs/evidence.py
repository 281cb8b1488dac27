"""Where evidence of the machine comes from: sources that a client asks for a report.

``sample`` proves nothing and is for development; TDX and SNP reports are made by the kernel through
``configfs-tsm``.  Sources: Linux, ``Documentation/ABI/testing/configfs-tsm-report`` (6.7); trustee,
``deps/verifier/src/sample``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

from lamina.errors import KernelError, UnsupportedError
from lamina.trust.strict_json import encode_base64

SAMPLE: Final = "sample"
SAMPLE_MEASUREMENT: Final = "abcde"
"""What trustee takes the measurement of every sample for."""
TSM_FOLDER: Final = "/sys/kernel/config/tsm/report"
REPORT_DATA_BYTES: Final = 64
MAX_REPORT_BYTES: Final = 128 << 10
_PROVIDERS: Final = {"tdx_guest": "tdx", "sev_guest": "snp"}
_ATTEMPTS: Final = 5


class EvidenceSource(Protocol):
    """A machine's way to prove what runs in it."""

    def collect(self, report_data: bytes) -> tuple[str, dict[str, Any]]:
        """The kind of the TEE as the protocol names it, and evidence that has ``report_data`` (at
        most 64 bytes) in it.

        Raises UnsupportedError or KernelError if this machine has none.
        """

    @property
    def tee(self) -> str:
        """The kind alone, which the first request of an attestation states."""


@dataclass(frozen=True, slots=True)
class SampleEvidence:
    """Unsigned evidence for development.  Lamina's own broker believes ``measurement``; trustee's
    verifier of samples does not look at it.
    """

    measurement: str = SAMPLE_MEASUREMENT

    @property
    def tee(self) -> str:
        """``sample``."""
        return SAMPLE

    def collect(self, report_data: bytes) -> tuple[str, dict[str, Any]]:
        """As trustee's attester of samples makes it."""
        evidence = {"svn": "1", "report_data": encode_base64(report_data)}
        if self.measurement != SAMPLE_MEASUREMENT:
            evidence["launch_digest"] = self.measurement
        return SAMPLE, evidence


@dataclass(frozen=True, slots=True)
class TsmEvidence:
    """A report of the CPU by ``configfs-tsm``: each one is a folder that is made, filled with the
    report data, read and removed.
    """

    folder: str = TSM_FOLDER

    @property
    def tee(self) -> str:
        """``tdx`` or ``snp``.  Raises UnsupportedError."""
        with self._entry() as path:
            return _kind(path)

    def collect(self, report_data: bytes) -> tuple[str, dict[str, Any]]:
        """The quote of TDX, or report and certificates of SNP, in base64."""
        for _ in range(_ATTEMPTS):
            with self._entry() as path:
                kind = _kind(path)
                before = _generation(path)
                _write(path, "inblob", report_data.ljust(REPORT_DATA_BYTES, b"\0"))
                report = _read(path, "outblob")
                certificates = b"" if kind == "tdx" else _read(path, "auxblob", optional=True)
                # Every write counts: another number means that the report is for other data.
                if _generation(path) - before != 1:
                    continue
            if kind == "tdx":
                return kind, {"quote": encode_base64(report), "cc_eventlog": None}
            found: dict[str, Any] = {"attestation_report": encode_base64(report)}
            if certificates:
                found["cert_chain"] = encode_base64(certificates)
            return kind, found
        raise KernelError(f"another process writes to the same report in {self.folder}")

    @contextlib.contextmanager
    def _entry(self) -> Iterator[str]:
        path = os.path.join(self.folder, f"lamina-{secrets.token_hex(8)}")
        try:
            os.mkdir(path, 0o700)
        except OSError as error:
            raise UnsupportedError(
                f"this machine gives no report of its CPU: {self.folder}: {error.strerror}",
                hint="it has to be a TDX or SEV-SNP guest with Linux 6.7 and configfs mounted, "
                "and this process root",
            ) from None
        try:
            yield path
        finally:
            with contextlib.suppress(OSError):
                os.rmdir(path)


def make_source(name: str, measurement: str = SAMPLE_MEASUREMENT) -> EvidenceSource:
    """The source of a name: ``sample`` or ``tsm``."""
    return TsmEvidence() if name == "tsm" else SampleEvidence(measurement)


SOURCES: Final = (SAMPLE, "tsm")


def _kind(path: str) -> str:
    provider = _read(path, "provider").decode("ascii", "replace").strip()
    if provider not in _PROVIDERS:
        raise UnsupportedError(f"reports of the kind {provider[:40]!r} are not known here")
    return _PROVIDERS[provider]


def _generation(path: str) -> int:
    text = _read(path, "generation").strip()
    if not text.isdigit():
        raise KernelError(f"the generation of the report in {path} is no number")
    return int(text[:18])


def _read(path: str, name: str, *, optional: bool = False) -> bytes:
    file_path = os.path.join(path, name)
    if optional and not os.path.exists(file_path):
        return b""
    try:
        with open(file_path, "rb", buffering=0) as file:
            data = b""
            while len(data) <= MAX_REPORT_BYTES and (part := file.read(MAX_REPORT_BYTES + 1)):
                data += part
    except OSError as error:
        raise KernelError(f"cannot read {name} of a report: {error.strerror}") from None
    if len(data) > MAX_REPORT_BYTES:
        raise KernelError(f"{name} of a report has more than {MAX_REPORT_BYTES} bytes")
    return data


def _write(path: str, name: str, data: bytes) -> None:
    try:
        fd = os.open(os.path.join(path, name), os.O_WRONLY | os.O_CLOEXEC)
        with open(fd, "wb", buffering=0) as file:
            file.write(data)
    except OSError as error:
        raise KernelError(f"cannot write {name} of a report: {error.strerror}") from None
