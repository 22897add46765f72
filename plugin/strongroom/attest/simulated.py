"""Obtain simulated evidence: on any machine, protecting nothing, and loudly so.

The measurement is a digest over the Python distributions installed beside us, computed
here by the attester and believed by nobody's hardware. Every use prints a warning to
stderr. Nothing chooses this attester: it has to be named.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import site
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any

from strongroom.encoding import labelled
from strongroom.errors import AttesterUnavailable
from strongroom.evidence.simulated import TEE, SimulatedReport
from strongroom.evidence.types import Evidence
from strongroom.plugins import distribution_digest

WARNING = "SIMULATED TEE: this evidence can be forged by anyone and nothing here is protected"
_log = logging.getLogger(__name__)


class SimulatedAttester:
    """Signs what it is asked to with the published development key.

    `measurement` replaces the measured one (32 bytes), for showing what a refusal looks like;
    `asserted` are further JSON values to state about itself, without floats.
    """

    tee = TEE

    def __init__(self, *, measurement: bytes | None = None, asserted: Mapping[str, Any] | None = None) -> None:
        self._measurement = measurement
        self._asserted = dict(asserted or {})

    @property
    def measurement(self) -> bytes:
        """32 bytes: what `evidence` will state."""
        return self._measurement if self._measurement is not None else installed_measurement()

    def asserting(self, further: Mapping[str, Any]) -> SimulatedAttester:
        """One that says more about itself."""
        return SimulatedAttester(measurement=self._measurement, asserted=self._asserted | dict(further))

    def evidence(self, report_data: bytes) -> Evidence:
        """Simulated evidence over 1 to 64 bytes of report data, padded with zeros; warns on stderr."""
        if not 1 <= len(report_data) <= 64:
            raise AttesterUnavailable(f"report data has 1 to 64 bytes, got {len(report_data)}")
        with contextlib.suppress(OSError):  # a log whose disk is full keeps nobody from attesting
            print(f"strongroom: warning: {WARNING}", file=sys.stderr, flush=True)
        if _log.hasHandlers():
            _log.warning(WARNING)
        report = SimulatedReport.sign(self.measurement, report_data.ljust(64, b"\0"), self._asserted)
        return Evidence(TEE, report.serialise())


@cache
def installed_measurement() -> bytes:
    """SHA-256 over every installed distribution's name, version and recorded file digests.

    Computed once a process. Two machines with the same installed wheels agree; an editable install adds
    its sources' digests (`distribution_digest`).
    """
    installed = metadata.distributions(path=site.getsitepackages())  # not what lies in the present folder
    digests = sorted((each.name.lower(), each.version, distribution_digest(each)) for each in installed if each.name)
    parts = [part for name, version, digest in digests for part in (name.encode(), version.encode(), digest)]
    return hashlib.sha256(labelled("strongroom simulated measurement v1", *parts)).digest()
