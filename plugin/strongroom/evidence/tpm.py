"""Verify TPM 2.0 evidence: a quote, why its key is believed, and logs that replay to it.

docs/attestation/tpm.md is the page for people; `tpm_evidence` has the body's form. Endorsements: ``ak_cert``,
``ek_cert`` (DER, in place of those in the evidence), ``certificates`` (PEM, intermediates), ``crl``, ``crl:…``,
``ocsp`` (`revocation.Lists`).

A quote alone shows that *some* restricted key of *some* TPM signed; who that is comes from one of three: a
certificate for the key, the policy's list of keys, or a credential that this very session activated, which
the broker states by handing its `Activation` to the verifier it makes for the session.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from strongroom.encoding import Fields
from strongroom.evidence.launch_policy import orderly
from strongroom.evidence.tpm_credential import Activation, Challenge
from strongroom.evidence.tpm_event_log import EventLog, replay_launch
from strongroom.evidence.tpm_evidence import TpmEvidence
from strongroom.evidence.tpm_key import KeyExamination
from strongroom.evidence.tpm_policy import TpmPolicy
from strongroom.evidence.tpm_quote import (
    PART_2,
    PART_3,
    check_algorithms,
    check_nonce,
    check_pcrs,
    check_signature,
    scheme_matches,
)
from strongroom.evidence.tpm_structures import Quote, TpmSignature
from strongroom.evidence.types import Checklist, Claim, Claims, Endorsements, Evidence, Provenance, Word

_FIRMWARE = "TCG PC Client Platform Firmware Profile section 10"


class TpmVerifier:
    """The verifier of TPM 2.0 quotes; `activation` is what the broker proved in this session, if it did."""

    tee = "tpm"

    def __init__(self, *, activation: Activation | None = None) -> None:
        self._activation = activation

    def policy(self, table: Fields) -> TpmPolicy:
        """Parse the ``[tpm]`` table of a policy file; raises `MalformedInput`."""
        policy = TpmPolicy.read(table)
        table.done()
        return policy

    def challenge(self, announced: object) -> TpmChallenge:
        """A credential for the EK and AK that an attester announced; raises `MalformedInput` or `EvidenceMalformed`."""
        return TpmChallenge(Challenge.announced(announced))

    def verify(
        self, evidence: Evidence, endorsements: Endorsements, now: datetime, policy: TpmPolicy, checks: Checklist
    ) -> Claims:
        """The attestation key, the quote and the logs; raises `EvidenceMalformed`."""
        body = TpmEvidence.parse(evidence.body)
        examined = KeyExamination(body, endorsements, now, policy, checks, self._activation)
        examined.read_key()
        bank = body.bank(policy.pcr_bank)
        quote, covered = _check_quote(body, bank, examined, policy, checks)
        examined.check_trust(quote)
        values = dict(examined.claims)
        if quote is not None:
            values |= _quote_claims(quote)
        if bank is not None and covered is not None:
            values["pcr_bank"] = Claim(bank)
            values["pcrs"] = Claim({str(index): value.hex() for index, value in covered.items()})
            values |= _check_logs(body, bank, covered, policy, checks)
        elif body.event_log is not None:
            EventLog.parse(body.event_log)
        return Claims(
            tee="tpm",
            values=values,
            report_data=b"" if quote is None else quote.extra_data,
            binding_word=Word.EVIDENCE_MISSING if quote is None else Word.NONCE,
            device_id=examined.ek_digest or ("" if examined.key is None else str(values["ak_key"].value)),
        )

    def appraise(self, claims: Claims, policy: TpmPolicy, checks: Checklist) -> None:
        """PCR values, secure boot and the launch log against the policy."""
        policy.appraise(claims, checks)


class TpmChallenge:
    """A credential that was sent to one session's attester (`SessionChallenge`)."""

    def __init__(self, challenge: Challenge) -> None:
        self._challenge = challenge

    def offer(self) -> dict[str, str]:
        """The credential, as the challenge's ``extra-params`` carry it."""
        return self._challenge.credential.serialise()

    def verifier(self, evidence: Evidence) -> TpmVerifier:
        """The verifier for this session: it knows what the evidence's answer proved.

        Without an answer it knows of no activation, and a policy that asks for one refuses. Raises
        `EvidenceRefused` for a wrong answer, `EvidenceMalformed` for evidence that cannot be read.
        """
        body = TpmEvidence.parse(evidence.body)
        messages = [quote.message for quote in body.quotes.values() if quote.message is not None]
        if body.activation is None or len(messages) != 1:
            return TpmVerifier()
        return TpmVerifier(activation=self._challenge.answered(body.activation, messages[0]))


# -- the quote and the logs --------------------------------------------------------


def _check_quote(
    body: TpmEvidence, bank: str | None, examined: KeyExamination, policy: TpmPolicy, checks: Checklist
) -> tuple[Quote | None, dict[int, bytes] | None]:
    given = None if bank is None else body.quotes.get(bank)
    message = None if given is None else given.message
    signature = None if given is None or given.signature is None else TpmSignature.parse(given.signature)
    checks.that(
        message is not None and signature is not None, "tpm.quote", Word.EVIDENCE_MISSING,
        expected=f"a quote of the {bank or 'SHA-256'} bank and its signature",
        found=f"quote {'given' if message is not None else 'missing'}, "
        f"signature {'given' if signature is not None else 'missing'}",
        source=PART_3, hint="quote the bank that the policy names",
    )  # fmt: skip
    if given is None or message is None or bank is None:
        return None, None
    quote = Quote.parse(message)
    checks.that(
        True, "tpm.format", Word.FORMAT, expected="magic TCG, type quote", found="so it is",
        source=f"{PART_2} section 10.12.12",
    )  # fmt: skip
    check_nonce(quote, checks, name="tpm", allow_empty=policy.allow_empty_nonce)
    if signature is None:
        return quote, None
    check_algorithms(signature, bank, checks, name="tpm")
    public, key = examined.public, examined.key
    if public is not None and signature.hash_name != "sha1":
        checks.that(
            scheme_matches(public, signature), "tpm.scheme", Word.ALGORITHM,
            expected="the scheme that the key fixes", found=f"{signature.scheme_name} with {signature.hash_name}",
            source=f"{PART_2} section 12.2.3", hint="sign with the attestation key's own scheme",
        )  # fmt: skip
    if key is not None and signature.hash_name != "sha1":
        check_signature(message, signature, key, checks, name="tpm")
    return quote, check_pcrs(quote, given.pcrs, bank, signature.hash_name, checks, name="tpm")


def _quote_claims(quote: Quote) -> dict[str, Claim]:
    return {
        "firmware_version": Claim(f"{quote.firmware_version:#018x}"),
        "clock": Claim(quote.clock),
        "reset_count": Claim(quote.reset_count),
        "restart_count": Claim(quote.restart_count),
        "qualified_signer": Claim(quote.qualified_signer.hex()),
    }


def _check_logs(
    body: TpmEvidence, bank: str, covered: Mapping[int, bytes], policy: TpmPolicy, checks: Checklist
) -> dict[str, Claim]:
    """Replay what logs there are; claims are made of those alone that reach the quoted registers."""
    if policy.require_event_log:
        checks.that(
            body.event_log is not None, "tpm.event-log-given", Word.EVIDENCE_MISSING, expected="a TCG event log",
            found="given" if body.event_log is not None else "none", source=_FIRMWARE,
            hint="send /sys/kernel/security/tpm0/binary_bios_measurements",
        )  # fmt: skip
    claims: dict[str, Claim] = {}
    registers: dict[int, bytes] = {}
    log = None if body.event_log is None else EventLog.parse(body.event_log)
    if log is not None:
        registers = log.replay(bank) if bank in log.banks else {}
    ours = replay_launch(body.launch_log, registers, bank)
    if log is not None:
        good = _replayed({**registers, **ours}, registers, covered, checks, "tpm.event-log")
        if good and bank in log.banks:
            state = log.secure_boot(bank)
            claims["event_count"] = Claim(len(log.events), Provenance.EVENT_LOG)
            if state is not None and 7 in registers:
                claims["secure_boot"] = Claim(state, Provenance.EVENT_LOG)
    if ours and _orderly(body, policy, checks) and _replayed(ours, ours, covered, checks, "tpm.launch-log"):
        for event in body.launch_log:
            claims[f"launch.{event.event}"] = Claim(event.digest.hex(), Provenance.EVENT_LOG)
    return claims


def _orderly(body: TpmEvidence, policy: TpmPolicy, checks: Checklist) -> bool:
    events = [(event.pcr, event.event) for event in body.launch_log]
    return orderly(events, policy.launch_pcr, checks, name="tpm", kind="PCR")


def _replayed(
    after: Mapping[int, bytes],
    extended: Mapping[int, bytes],
    covered: Mapping[int, bytes],
    checks: Checklist,
    name: str,
) -> bool:
    wrong = [index for index in sorted(extended) if covered.get(index) != after[index]]
    unquoted = [index for index in wrong if index not in covered]
    told = (("differ", [each for each in wrong if each in covered]), ("not quoted", unquoted),
            ("reached", [] if wrong else sorted(extended)))  # fmt: skip
    found = "; ".join(f"PCR {', '.join(map(str, indices))} {what}" for what, indices in told if indices)
    return checks.that(
        not wrong and bool(extended), name, Word.EVENT_LOG,
        expected="a log that replays to every register it extends, each of them quoted",
        found=found if extended else "a log without the judged bank",
        source=_FIRMWARE, hint="send the whole log, read after the last extend",
    )  # fmt: skip
