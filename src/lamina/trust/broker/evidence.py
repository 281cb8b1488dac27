"""Where evidence of the machine comes from: sources that a client asks for a report.

``sample`` proves nothing and is for development; TDX and SNP reports are made by the kernel through
``configfs-tsm``.  Sources: Linux, ``Documentation/ABI/testing/configfs-tsm-report`` (6.7); trustee,
``deps/verifier/src``, for the forms that its verifiers read; Intel TDX DCAP quoting library API,
appendix A, for the place of ``mr_config_id`` in a quote; ACPI 6.5 for the event log (CCEL).
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

from lamina.errors import KernelError, TrustError, UnsupportedError
from lamina.trust.broker import snp_report
from lamina.trust.broker.init_data import InitData, fitted
from lamina.trust.strict_json import encode_base64

SAMPLE: Final = "sample"
SAMPLE_MEASUREMENT: Final = "abcde"
"""What trustee takes the measurement of every sample for."""
TSM_FOLDER: Final = "/sys/kernel/config/tsm/report"
EVENT_LOG: Final = "/sys/firmware/acpi/tables/data/CCEL"
"""What the firmware of a TDX guest measured into its registers, if it kept a log."""
REPORT_DATA_BYTES: Final = 64
MAX_REPORT_BYTES: Final = 128 << 10
MAX_EVENT_LOG_BYTES: Final = 1 << 20
_PROVIDERS: Final = {"tdx_guest": "tdx", "sev_guest": "snp"}
_ATTEMPTS: Final = 5
_TDX_CONFIG_ID: Final = {4: slice(232, 280), 5: slice(238, 286)}
"""``mr_config_id`` by the version of the quote."""


class EvidenceSource(Protocol):
    """A machine's way to prove what runs in it."""

    def collect(self, report_data: bytes) -> tuple[str, dict[str, Any]]:
        """Return the kind of the TEE as the protocol names it, and evidence that has
        ``report_data`` (at most 64 bytes) in it.

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
        """Make it as trustee's attester of samples does."""
        evidence = {"svn": "1", "report_data": encode_base64(report_data)}
        if self.measurement != SAMPLE_MEASUREMENT:
            evidence["launch_digest"] = self.measurement
        return SAMPLE, evidence


@dataclass(frozen=True, slots=True)
class TsmEvidence:
    """A report of the CPU by ``configfs-tsm``: each one is a folder that is made, filled with the
    report data, read and removed.

    With ``init_data`` a report that is bound to other init-data is an error before it is sent.
    """

    folder: str = TSM_FOLDER
    init_data: InitData | None = None
    event_log: str = EVENT_LOG

    @property
    def tee(self) -> str:
        """``tdx`` or ``snp``.  Raises UnsupportedError."""
        with self._entry() as path:
            return _kind(path)

    def collect(self, report_data: bytes) -> tuple[str, dict[str, Any]]:
        """Return the quote and event log of TDX, or report and certificates of SNP, as trustee
        takes them.

        Raises TrustError for other init-data.
        """
        kind, report, certificates = self._report(report_data)
        if self.init_data is not None:
            _check_binding(kind, report, self.init_data)
        if kind == "tdx":
            log = _read_file(self.event_log, "the event log", MAX_EVENT_LOG_BYTES, optional=True)
            encoded = encode_base64(log) if log else None
            return kind, {"quote": encode_base64(report), "cc_eventlog": encoded}
        found: dict[str, Any] = {"attestation_report": snp_report.encode_report(report)}
        if chain := snp_report.encode_certificates(certificates):
            found["cert_chain"] = chain
        return kind, found

    def _report(self, report_data: bytes) -> tuple[str, bytes, bytes]:
        """Kind, report, certificates."""
        for _ in range(_ATTEMPTS):
            with self._entry() as path:
                kind = _kind(path)
                before = _generation(path)
                _write(path, "inblob", report_data.ljust(REPORT_DATA_BYTES, b"\0"))
                report = _read(path, "outblob")
                certificates = b"" if kind == "tdx" else _read(path, "auxblob", optional=True)
                # Every write counts: another number means that the report is for other data.
                if _generation(path) - before == 1:
                    return kind, report, certificates
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


def make_source(
    name: str, measurement: str = SAMPLE_MEASUREMENT, init_data: InitData | None = None
) -> EvidenceSource:
    """Return the source of a name: ``sample`` or ``tsm``.  Samples are bound to no init-data."""
    return TsmEvidence(init_data=init_data) if name == "tsm" else SampleEvidence(measurement)


SOURCES: Final = (SAMPLE, "tsm")


def _check_binding(kind: str, report: bytes, init_data: InitData) -> None:
    """TrustError unless the report has the digest of the init-data in it; whoever verifies the
    report looks at the same place, but says no more than that it does not believe it.
    """
    place = snp_report.HOST_DATA
    if kind == "tdx":
        version = int.from_bytes(report[:2], "little")
        if version not in _TDX_CONFIG_ID:
            return
        place = _TDX_CONFIG_ID[version]
    bound = report[place]
    if bound == fitted(init_data.digest(), place.stop - place.start):
        return
    started = "other init-data than this" if any(bound) else "no init-data"
    raise TrustError(
        f"this machine was started with {started}: its report has {bound.hex()}, and the "
        f"{init_data.algorithm} of the file is {init_data.digest().hex()}",
        hint="give the file that the machine was started with, byte for byte",
    )


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
    return _read_file(file_path, f"{name} of a report", MAX_REPORT_BYTES, optional=optional)


def _read_file(path: str, what: str, limit_bytes: int, *, optional: bool) -> bytes:
    if optional and not os.path.exists(path):
        return b""
    try:
        with open(path, "rb", buffering=0) as file:
            data = b""
            while len(data) <= limit_bytes and (part := file.read(limit_bytes + 1)):
                data += part
    except OSError as error:
        raise KernelError(f"cannot read {what}: {error.strerror}") from None
    if len(data) > limit_bytes:
        raise KernelError(f"{what} has more than {limit_bytes} bytes")
    return data


def _write(path: str, name: str, data: bytes) -> None:
    try:
        fd = os.open(os.path.join(path, name), os.O_WRONLY | os.O_CLOEXEC)
        with open(fd, "wb", buffering=0) as file:
            file.write(data)
    except OSError as error:
        raise KernelError(f"cannot write {name} of a report: {error.strerror}") from None
