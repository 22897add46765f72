"""Obtain TPM 2.0 evidence: a restricted key, quotes by it, credentials activated for it, PCRs extended.

Needs the extra ``[tpm]`` (tpm2-pytss over Debian's libtss2) and a TPM: the kernel's resource manager
``/dev/tpmrm0``, or any TCTI that libtss2 knows (``swtpm:host=127.0.0.1,port=2321`` for a software TPM).
docs/attestation/tpm.md is the page for people; the bytes are `strongroom.evidence.tpm_evidence`'s.

The attestation key is a primary key of the endorsement hierarchy: it comes out the same after every reboot
(until the TPM is cleared), so its Name can be pinned, and the quote's qualifiedSigner vouches for its
attributes. Nothing is stored in the TPM.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strongroom.attest.launch_log import LaunchLog, place
from strongroom.attest.tpm_connection import DEVICE, TpmConnection, default_tcti, missing
from strongroom.encoding import b64
from strongroom.errors import AttesterUnavailable
from strongroom.evidence.tpm_credential import Credential, activation_answer, spki_of
from strongroom.evidence.tpm_event_log import LAUNCH_PCR, LaunchEvent
from strongroom.evidence.tpm_evidence import BankQuote, TpmEvidence
from strongroom.evidence.tpm_structures import PCRS, TpmPublic
from strongroom.evidence.types import Evidence

if TYPE_CHECKING:
    from tpm2_pytss import ESYS_TR

__all__ = ["TpmAttester", "missing", "read_launch_log", "write_launch_log"]

EVENT_LOG = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
NONCE_SIZE = 32
"""Bytes of report data that go into a quote; the key broker protocol cuts its digest to this."""
EK_TYPES = {"rsa2048": "EK-RSA2048", "ecc256": "EK-ECC256"}
"""The low-range templates, which every TPM 2.0 has (TCG EK Credential Profile 2.5, annex B.3)."""
AK_TEMPLATES = {"rsa": "rsa2048:rsassa-sha256:null", "ecc": "ecc256:ecdsa-sha256:null"}
_AK_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign|noda"
_NV_CERTIFICATES = 0x01C00000  # TCG Registry of reserved handles: EK certificates and templates


def launch_log_of(tcti: str) -> Path:
    """Where the launch log of the TPM behind that TCTI is kept; gone with the boot, as the registers are."""
    name = (
        "tpm-launch" if tcti == f"device:{DEVICE}" else f"tpm-launch-{hashlib.sha256(tcti.encode()).hexdigest()[:16]}"
    )
    return place(f"{name}.json")


class _Pending(threading.local):
    """The answer to a broker's credential, until the thread that took the challenge makes its evidence."""

    secret: bytes | None = None


class TpmAttester:
    """A TPM behind a TCTI. One instance serves a process; its methods may be called from any thread.

    `tcti` is a libtss2 configuration, by default `default_tcti`; `ak` is ``rsa`` (which stock verifiers of the
    key broker protocol need) or ``ecc``; `ek` is one of `EK_TYPES`; `bank` and `pcrs` say what is quoted.
    `event_log` and `launch_log` are files that may be absent; the firmware's log is the machine's own TPM's.
    """

    tee = "tpm"

    def __init__(
        self,
        tcti: str | None = None,
        *,
        ak: str = "rsa",
        ek: str = "rsa2048",
        bank: str = "sha256",
        pcrs: Sequence[int] = range(PCRS),
        event_log: Path | None = None,
        launch_log: Path | None = None,
    ) -> None:
        tcti = tcti or default_tcti()
        own = tcti.startswith("device:")
        self._bank, self._pcrs = bank, tuple(pcrs)
        self._event_log = event_log or (EVENT_LOG if own else None)
        self._launch_log = launch_log or launch_log_of(tcti)
        self._ek_type = EK_TYPES[ek]
        self._pending = _Pending()
        self._tpm = TpmConnection(tcti)
        self._lock = self._tpm.lock
        self._ak, self._ak_pub = self._primary(AK_TEMPLATES[ak])
        self._ek_cert = self._read_ek_certificate()

    def __enter__(self) -> TpmAttester:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the key and the connection; the attester cannot be used afterwards."""
        with self._lock:
            with suppress(AttesterUnavailable):
                self._tpm.flush(self._ak)
            self._tpm.close()

    @property
    def ak_name(self) -> bytes:
        """The Name of the attestation key: what a policy pins."""
        return TpmPublic.parse(self._ak_pub).name

    @property
    def ek_certificate(self) -> bytes | None:
        """The endorsement key's certificate (DER) out of the TPM's NV memory, or None."""
        return self._ek_cert

    # -- evidence ------------------------------------------------------------------

    def evidence(self, report_data: bytes) -> Evidence:
        """A quote over the first 32 bytes of `report_data`, with PCR values and logs.

        After `respond` in the same thread it also answers the broker's credential, once: evidence that others
        ask for meanwhile must not use the answer up. Raises `AttesterUnavailable`.
        """
        with self._lock:
            message, signature, pcrs = self._quote(report_data)
        secret, self._pending.secret = self._pending.secret, None
        body = TpmEvidence(
            quotes={self._bank: BankQuote(message, signature, pcrs)},
            ak_pub=self._ak_pub,
            ek_cert=self._ek_cert,
            event_log=None if self._event_log is None else _read(self._event_log),
            launch_log=read_launch_log(self._launch_log),
            activation=None if secret is None else activation_answer(secret, message),
        )
        return Evidence(self.tee, body.serialise())

    def protocol_evidence(self, report_data: bytes) -> Evidence:
        """The key broker protocol's own form, for a stock verifier: a bare RSA key and its quote."""
        with self._lock:
            message, signature, pcrs = self._quote(report_data)
        values = [pcrs[index].hex() for index in sorted(pcrs)]
        quote = {"signature": b64(signature), "message": b64(message), "pcrs": values}
        spki = spki_of(TpmPublic.parse(self._ak_pub).public_key)
        return Evidence(self.tee, {"ak_public": b64(spki), "tpm_quote": quote})

    def _quote(self, report_data: bytes) -> tuple[bytes, bytes, dict[int, bytes]]:
        if not NONCE_SIZE <= len(report_data) <= 64:
            raise AttesterUnavailable(f"report data has {NONCE_SIZE} to 64 bytes, got {len(report_data)}")
        return self._tpm.quote(self._ak, report_data[:NONCE_SIZE], self._bank, self._pcrs)

    # -- activate credential -------------------------------------------------------

    def announce(self) -> dict[str, str]:
        """What a broker needs to make a credential: EK certificate and AK, for ``extra-params`` of the request.

        Empty where the TPM holds no EK certificate.
        """
        if self._ek_cert is None:
            return {}
        return {"ek_cert": b64(self._ek_cert), "ak_pub": b64(self._ak_pub)}

    def respond(self, challenge: Mapping[str, Any]) -> None:
        """Activate the credential of the broker's ``extra-params``; the next `evidence` carries the answer.

        Raises `MalformedInput` for another form, `AttesterUnavailable` where the TPM refuses: the credential
        was made for another EK or AK.
        """
        credential = Credential.parse(challenge)
        with self._lock:
            self._pending.secret = self._activate(credential)

    def _activate(self, credential: Credential) -> bytes:
        from tpm2_pytss import ESYS_TR, TPM2_ALG, TPM2_SE, TPM2B_ENCRYPTED_SECRET, TPM2B_ID_OBJECT

        read = "read the broker's credential"
        blob, _ = self._tpm.asked(lambda: TPM2B_ID_OBJECT.unmarshal(credential.blob), read)
        encrypted, _ = self._tpm.asked(lambda: TPM2B_ENCRYPTED_SECRET.unmarshal(credential.encrypted_secret), read)
        esapi = self._tpm.esapi
        ek = self._endorsement_key()
        try:
            session = self._tpm.asked(
                lambda: esapi.start_auth_session(
                    ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, None, TPM2_ALG.SHA256
                ), "start a policy session",
            )  # fmt: skip
            try:
                self._tpm.asked(lambda: esapi.policy_secret(ESYS_TR.ENDORSEMENT, session), "authorise the EK")
                return bytes(
                    self._tpm.asked(
                        lambda: esapi.activate_credential(
                            self._ak, ek, blob, encrypted, session1=ESYS_TR.PASSWORD, session2=session
                        ), "activate the broker's credential",
                    )
                )  # fmt: skip
            finally:
                with suppress(AttesterUnavailable):
                    self._tpm.flush(session)
        finally:
            self._tpm.flush(ek)

    def _endorsement_key(self) -> ESYS_TR:
        from tpm2_pytss import ESYS_TR

        _, template = self._ek_template()
        made = self._tpm.asked(
            lambda: self._tpm.esapi.create_primary(None, template, primary_handle=ESYS_TR.ENDORSEMENT), "make the EK"
        )
        return made[0]

    def _read_ek_certificate(self) -> bytes | None:
        certificate, _ = self._ek_template()
        return _der(bytes(certificate)) if certificate else None

    def _ek_template(self) -> tuple[Any, Any]:
        """(certificate or None, TPM2B_PUBLIC) of the EK, read only from NV indices that exist."""
        from tpm2_pytss.utils import NoSuchIndex, NVReadEK, create_ek_template

        known = self._tpm.handles(_NV_CERTIFICATES)
        read = self._tpm.asked(lambda: NVReadEK(self._tpm.esapi), "say how it is read")

        def read_known(index: int) -> bytes:
            if int(index) not in known:
                raise NoSuchIndex(index)
            return bytes(read(index))

        return self._tpm.asked(lambda: create_ek_template(self._ek_type, read_known), "read the EK's template")  # type: ignore[no-any-return]

    # -- PCRs ------------------------------------------------------------------------

    def extend(self, digest: bytes, event: str, *, pcr: int = LAUNCH_PCR) -> LaunchEvent:
        """Extend `pcr` by an event and its 32-byte digest in every bank, and write it to the launch log.

        Called by `launch` before anything else starts; the log is written first. Raises `AttesterUnavailable`,
        also where the event stands in the log already.
        """
        entry = LaunchEvent(pcr, event, bytes(digest))
        LaunchEvent.parse(entry.serialise())
        with self._lock:
            _log(self._launch_log).add(entry)
            self._tpm.extend(pcr, {name: entry.extended(name) for name in self._tpm.banks()})
        return entry

    def launched(self) -> tuple[LaunchEvent, ...]:
        """What was extended in this boot; raises `AttesterUnavailable`."""
        return read_launch_log(self._launch_log)

    def launch_trouble(self) -> str:
        """Why launch events could not be shown; a TPM that answers has no reason."""
        return ""

    def init_data_state(self) -> bytes:
        """PCR 8, in which the key broker protocol has the digest of init-data; raises `AttesterUnavailable`."""
        return self._tpm.init_data_state()

    def bind_init_data(self, digest: bytes) -> None:
        """Extend PCR 8 by a SHA-256 digest, once a boot; raises `AttesterUnavailable`."""
        self._tpm.bind_init_data(digest)

    def _primary(self, template: str) -> tuple[ESYS_TR, bytes]:
        from tpm2_pytss import ESYS_TR, TPM2B_PUBLIC, TPMA_OBJECT, TPMT_PUBLIC

        attributes = TPMA_OBJECT.parse(_AK_ATTRIBUTES)
        public = TPM2B_PUBLIC(TPMT_PUBLIC.parse(template, objectAttributes=attributes))
        made = self._tpm.asked(
            lambda: self._tpm.esapi.create_primary(None, public, primary_handle=ESYS_TR.ENDORSEMENT),
            "make the attestation key",
        )
        return made[0], bytes(made[1].publicArea.marshal())


def _der(octets: bytes) -> bytes:
    """The certificate at the start of an NV index, which may be padded at its end."""
    if octets[:2] == b"\x30\x82" and len(octets) >= 4:
        return octets[: 4 + int.from_bytes(octets[2:4], "big")]
    return octets


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes() or None
    except OSError:
        return None


def read_launch_log(path: Path) -> tuple[LaunchEvent, ...]:
    """The events that `extend` wrote since boot; empty where there is no log. Raises `AttesterUnavailable`."""
    return _log(path).read()


def write_launch_log(path: Path, events: Sequence[LaunchEvent]) -> None:
    """Replace the log as a whole; raises `AttesterUnavailable`."""
    _log(path).write(events)


def _log(path: Path) -> LaunchLog[LaunchEvent]:
    return LaunchLog(path, LaunchEvent.parse)
