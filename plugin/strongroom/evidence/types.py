"""The words of RFC 9334 (RATS) as types: what goes into an appraisal and what comes out.

A verifier turns `Evidence` and `Endorsements` into `Claims`, recording every check in a
`Checklist`; it knows one TEE, reads no file, opens no socket and takes the clock as an
argument. Its second half, `appraise`, holds claims against one TEE's part of a policy.
`judge` (in the module of that name) runs both and is the only maker of a `Verdict`.

A check that fails does not stop a verifier where it can go on: whoever reads the refusal
wants to see everything that is wrong. What cannot be parsed raises `EvidenceMalformed`,
which `judge` records as a failed `format` check.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol, Self, runtime_checkable

from strongroom.encoding import Fields


class Word(StrEnum):
    """The class of a check; a closed list, so that programs can count on it.

    `FORMAT` bytes that cannot be parsed · `ALGORITHM` not accepted · `SIGNATURE` over evidence,
    collateral or a reference manifest · `CHAIN` of certificates · `VALIDITY_PERIOD` · `REVOCATION` ·
    `IDENTITY` evidence and endorsement speak of different devices · `BINDING` two parts that must
    vouch for each other do not · `NONCE` · `TCB` · `DEBUG` · `MIGRATION` · `VMPL` · `POLICY_BITS`
    another attribute or key kind that the policy refuses · `MEASUREMENT` · `RIM` · `EVENT_LOG` ·
    `LIFECYCLE` · `ATTESTATION_RESULT` · `DEVICE_COUNT` · `COLLATERAL_MISSING` · `EVIDENCE_MISSING` ·
    `TEE` the policy does not name this kind of TEE · `ADMITTED` the set of archives, authors or
    configuration behind the channel key is not the expected one.
    """

    FORMAT = "format"
    ALGORITHM = "algorithm"
    SIGNATURE = "signature"
    CHAIN = "chain"
    VALIDITY_PERIOD = "validity-period"
    REVOCATION = "revocation"
    IDENTITY = "identity"
    BINDING = "binding"
    NONCE = "nonce"
    TCB = "tcb"
    DEBUG = "debug"
    MIGRATION = "migration"
    VMPL = "vmpl"
    POLICY_BITS = "policy-bits"
    MEASUREMENT = "measurement"
    RIM = "rim"
    EVENT_LOG = "event-log"
    LIFECYCLE = "lifecycle"
    ATTESTATION_RESULT = "attestation-result"
    DEVICE_COUNT = "device-count"
    COLLATERAL_MISSING = "collateral-missing"
    EVIDENCE_MISSING = "evidence-missing"
    TEE = "tee"
    ADMITTED = "admitted"


class Provenance(StrEnum):
    """Who says a claim: the hardware's signature, a log replayed against a register, a verifier that the
    policy trusts, or software itself."""

    HARDWARE = "hardware"
    EVENT_LOG = "event-log"
    ATTESTATION_RESULT = "attestation-result"
    SELF_ASSERTED = "self-asserted"


class RevocationStatus(StrEnum):
    """What is known of the revocation of everything that vouches for one device (docs/attestation/ear.md).

    `JUDGED` every certificate that can be revoked was looked up in a current list or answer, and is good · `NO_LIST`
    there is nothing to look up: no certificate names a list, or a policy pins the key itself · `NOT_JUDGED` else.
    """

    JUDGED = "judged"
    NO_LIST = "no-list"
    NOT_JUDGED = "not-judged"

    @classmethod
    def worst(cls, found: Iterable[RevocationStatus]) -> RevocationStatus:
        """Of several chains: one that was not judged decides, then one that was. `NOT_JUDGED` of none at all."""
        return max(found, key=(cls.NO_LIST, cls.JUDGED, cls.NOT_JUDGED).index, default=cls.NOT_JUDGED)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: what was expected, what was found, and what to do next.

    `name` is stable and dotted (``snp.debug``); `source` names a specification section or
    vendor document; `hint` is the next step for whoever reads a failure, and may be empty.
    """

    name: str
    word: Word
    ok: bool
    expected: str
    found: str
    source: str = ""
    hint: str = ""

    def serialise(self) -> dict[str, Any]:
        """For ``--json`` and the audit log."""
        return {
            "name": self.name,
            "word": str(self.word),
            "ok": self.ok,
            "expected": self.expected,
            "found": self.found,
            "source": self.source,
            "hint": self.hint,
        }


class Checklist:
    """Collects checks in the order they were made, and what was found about revocation beside them."""

    def __init__(self) -> None:
        self._checks: list[Check] = []
        self._revocation: list[RevocationStatus] = []

    def that(
        self, ok: bool, name: str, word: Word, *, expected: str, found: str, source: str = "", hint: str = ""
    ) -> bool:
        """Record one check; returns `ok` so that a verifier can skip what depends on it."""
        self._checks.append(Check(name, word, bool(ok), expected, found, source, "" if ok else hint))
        return bool(ok)

    def note_revocation(self, status: RevocationStatus) -> None:
        """What was found about one chain or pinned key. It refuses nothing by itself: a release policy may."""
        self._revocation.append(status)

    @property
    def revocation(self) -> RevocationStatus:
        """The worst of what was noted; a verifier that notes nothing has not judged revocation."""
        return RevocationStatus.worst(self._revocation)

    def __iter__(self) -> Iterator[Check]:
        return iter(self._checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not hold."""
        return tuple(check for check in self._checks if not check.ok)

    @property
    def all(self) -> tuple[Check, ...]:
        """Every check so far."""
        return tuple(self._checks)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an attester produced, in the JSON form of the key broker protocol (docs/release.md).

    `tee` is the protocol's TEE name (``snp``, ``tdx``, ``nvidia``, ``simulated``, …); `body` is the
    decoded JSON value that travels as ``primary_evidence`` or as one member of the device map.
    """

    tee: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Endorsements:
    """What vendors and operators sign about hardware, handed in as data; may be empty.

    `items` maps a role name that the verifier of a TEE documents (``vcek``, ``collateral``,
    ``driver_rim``, ``crl``, …) to bytes. Roots of trust are not endorsements: verifiers carry them.
    """

    items: Mapping[str, bytes] = field(default_factory=dict)

    def get(self, role: str) -> bytes | None:
        """The endorsement in that role, or None."""
        return self.items.get(role)


@dataclass(frozen=True, slots=True)
class Claim:
    """One value that evidence states, and who says it."""

    value: Any
    provenance: Provenance = Provenance.HARDWARE


@dataclass(frozen=True, slots=True)
class Claims:
    """What one piece of evidence says, after its signatures were checked.

    `report_data` is the relying party's field as the hardware carries it: 64 bytes for most TEEs,
    32 for a TPM quote's or an SPDM nonce. `binding_word` says how a mismatch is called: `Word.BINDING`
    for report data, `Word.NONCE` where the field is a challenge. `device_class` is ``cpu``, ``gpu`` or
    ``switch``; `device_id` is a stable identity of the chip where there is one, so that the same
    device twice is noticed.
    """

    tee: str
    values: Mapping[str, Claim]
    report_data: bytes
    binding_word: Word = Word.BINDING
    device_class: str = "cpu"
    device_id: str = ""

    def __getitem__(self, name: str) -> Any:
        return self.values[name].value

    def unproved(self) -> Self:
        """The same claims as mere words: for evidence whose verification failed somewhere."""
        return replace(
            self, values={name: Claim(each.value, Provenance.SELF_ASSERTED) for name, each in self.values.items()}
        )

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a claim, or `default`."""
        claim = self.values.get(name)
        return default if claim is None else claim.value


class Verifier(Protocol):
    """One TEE's verifier. Stateless; every method is a pure function of its arguments.

    `P` below is the verifier's own frozen policy dataclass, made by `policy` from the table that a
    policy file has under the verifier's name (``[snp]``); judge hands it back untouched.
    """

    tee: str
    """The TEE name in `Evidence.tee` and in policy files."""

    def policy(self, table: Fields) -> Any:
        """Parse this TEE's table of a policy file, strictly; raise `MalformedInput`.

        An empty table gives the strictest sensible defaults (no debug, no migration, …). An allow-list
        that is present and empty denies; reference values that are absent are not checked, except
        where the verifier documents that it requires them.
        """

    def verify(
        self, evidence: Evidence, endorsements: Endorsements, now: datetime, policy: Any, checks: Checklist
    ) -> Claims:
        """Everything that is cryptography, format and consistency. Raises `EvidenceMalformed`.

        Signatures, chains to pinned roots, validity at `now`, revocation, identities, replays. A check
        that depends on a failed one is left out. `policy` is only consulted where it changes what is
        verified (an accepted key kind, a bank, trailing bytes). What was found about revocation is noted
        by `Checklist.note_revocation`, once for each chain and for each key that the policy pins.
        """

    def appraise(self, claims: Claims, policy: Any, checks: Checklist) -> None:
        """Everything that is judgement: debug, TCB, measurements against `policy`."""


@runtime_checkable
class DeviceVerifier(Protocol):
    """A verifier whose evidence body may hold several devices (a host's GPUs travel in one list)."""

    def split(self, evidence: Evidence) -> tuple[Evidence, ...]:
        """One `Evidence` a device, each fit for `verify`, in the order given; raise `EvidenceMalformed`."""


class Attester(Protocol):
    """What obtains evidence from the machine it runs on. One instance serves a process."""

    tee: str
    """The TEE name of the evidence it makes."""

    def evidence(self, report_data: bytes) -> Evidence:
        """Fresh evidence over `report_data`: a digest of 32 to 64 bytes.

        The attester pads it with zeros, or cuts it, to the width of its TEE's field, as `judge` does
        before it compares. Raises `AttesterUnavailable`. Never falls back to another TEE.
        """


# -- evidence that takes a challenge of its own -------------------------------------


@runtime_checkable
class ChallengedAttester(Protocol):
    """An attester that first has to show something to the broker of this session (a TPM: that its keys are one TPM's).

    What both say to each other travels in ``extra-params``, as the member that the TEE is named after
    (docs/release.md section 11.5). A stock broker takes no part in it.
    """

    def announce(self) -> Mapping[str, Any]:
        """What the broker needs to make a challenge; empty where there is nothing to be challenged with."""

    def respond(self, challenge: Mapping[str, Any]) -> None:
        """Take the broker's challenge; the next evidence carries the answer. Raises `MalformedInput`."""

    def protocol_evidence(self, report_data: bytes) -> Evidence:
        """Evidence in the key broker protocol's own form, for a broker that announced no challenge."""


@runtime_checkable
class SessionChallenge(Protocol):
    """A broker's side of one such exchange; kept with the session, used for one attestation."""

    def offer(self) -> Mapping[str, Any]:
        """What is sent to the attester."""

    def verifier(self, evidence: Evidence) -> Verifier:
        """A verifier that knows what the answer in `evidence` proves.

        Raises `EvidenceRefused` for a wrong answer, `EvidenceMalformed` for evidence that cannot be read.
        """


@runtime_checkable
class ChallengingVerifier(Protocol):
    """A verifier whose evidence may answer a challenge."""

    def challenge(self, announced: object) -> SessionChallenge:
        """For what an attester announced; raises `MalformedInput` or `EvidenceMalformed`."""
