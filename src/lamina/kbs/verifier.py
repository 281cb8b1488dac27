"""What evidence proves.  This broker knows samples only, which prove nothing: it is for development
and tests.  Evidence of hardware is for trustee, which has the certificates of the makers.
"""

from __future__ import annotations

import hmac
from typing import Any, Final

from lamina.errors import FormatError, TrustError, UnsupportedError
from lamina.kbs.rules import Attested
from lamina.trust import strict_json
from lamina.trust.broker.evidence import SAMPLE, SAMPLE_MEASUREMENT

_MAX_MEASUREMENT: Final = 256


def verify_evidence(tee: str, evidence: Any, report: bytes) -> Attested:
    """Return what the evidence says, after the report data in it proved to be *report*.

    Raises FormatError, TrustError; UnsupportedError for other kinds than samples.
    """
    if tee != SAMPLE:
        raise UnsupportedError(f"this broker cannot verify evidence of the kind {tee[:40]!r}")
    what = "sample evidence"
    optional = ("cc_eventlog", "launch_digest")
    strict_json.expect_keys(evidence, what, ("svn", "report_data"), optional)
    data = strict_json.decode_base64(evidence["report_data"], f"report data of the {what}")
    if not hmac.compare_digest(data, report):
        raise TrustError("the evidence is for another nonce or another key")
    measurement = evidence.get("launch_digest", SAMPLE_MEASUREMENT)
    text = strict_json.text_of(measurement, f"digest of the {what}")
    if not 0 < len(text) <= _MAX_MEASUREMENT or not (text.isascii() and text.isprintable()):
        raise FormatError(f"the digest of the {what} is none")
    return Attested(SAMPLE, measurement)
