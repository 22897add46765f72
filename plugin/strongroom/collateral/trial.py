"""Judge one endorsement on its own: is it what its name says, signed by its vendor, and valid now?

Run before anything is kept and again whenever something is read from a store, a folder or a bundle, so
that whoever can write to a disk gains nothing. What evidence makes of an endorsement is the verifier's business.

What supersedes an earlier one of its name also says how late it is (`Judged.order`), so that `cache` never goes back.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from strongroom.collateral.trusted import Trusted
from strongroom.collateral.wanted import Wanted
from strongroom.encoding import Fields, parse_json
from strongroom.errors import CollateralUnavailable, EvidenceMalformed, MalformedInput
from strongroom.evidence.certificates import parse_certificate
from strongroom.evidence.crl import RevocationList, check_crl, parse_crl
from strongroom.evidence.dcap_collateral import Collateral
from strongroom.evidence.dcap_endorsement import verify_collateral
from strongroom.evidence.revocation import Lists, answer_holds, speaks_of
from strongroom.evidence.snp_certificate import PRODUCTS, SnpCertificate
from strongroom.evidence.types import Checklist

Order = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """What an endorsement that holds says of itself."""

    expires: datetime
    order: Order = ()
    """For each part that supersedes an earlier one (a list, an answer, a text of Intel's) what it counts up, the
    deciding number first. Empty where nothing does: certificates and manifests, whose versions are in their names."""

    def older_than(self, other: Judged) -> bool:
        """Whether any part of this is older than the same part of `other`: nothing in it may be taken back."""
        return any(map(_earlier, self.order, other.order))


def _earlier(ours: tuple[float | None, ...], theirs: tuple[float | None, ...]) -> bool:
    both = ((mine, other) for mine, other in zip(ours, theirs, strict=True) if mine is not None and other is not None)
    return next((mine < other for mine, other in both if mine != other), False)


def judge_endorsement(wanted: Wanted, octets: bytes, now: datetime, trusted: Trusted) -> Judged:
    """Until when this endorsement may be used, and how late it is.

    Raises `CollateralUnavailable` that says what is wrong with it.
    """
    checks = Checklist()
    try:
        judge = {"dcap": _dcap, "vcek": _vcek, "amd-crl": _amd_crl, "rim": _rim, "ocsp": _ocsp, "crl": _crl}.get(
            wanted.kind
        )
        if judge is None:
            raise MalformedInput(f"a {wanted.kind} is not an endorsement that is known here")
        judged = judge(wanted, octets, now, trusted, checks)
    except (EvidenceMalformed, MalformedInput) as error:
        raise CollateralUnavailable(f"{wanted.name}: {error}", hint="fetch it again, or look at its source") from error
    failed = checks.failed
    if failed or not checks.all:
        said = "; ".join(f"{each.name}: expected {each.expected}, found {each.found}" for each in failed[:2])
        hint = next((each.hint for each in failed if each.hint), "")
        raise CollateralUnavailable(f"{wanted.name} is refused: {said or 'nothing could be checked'}", hint=hint)
    return judged


def _words(wanted: Wanted, count: int) -> tuple[str, ...]:
    if len(wanted.words) != count:
        raise MalformedInput(f"the name of a {wanted.kind} has {count + 1} words")
    return wanted.words


def _same(found: object, asked: object, what: str) -> None:
    if found != asked:
        raise MalformedInput(f"it is for {what} {found}, not {asked}")


def _dcap(wanted: Wanted, octets: bytes, now: datetime, trusted: Trusted, checks: Checklist) -> Judged:
    tee, fmspc, authority = _words(wanted, 3)
    judged = verify_collateral(octets, root=trusted.intel_root, now=now, checks=checks, name="collateral")
    if judged is None:
        return Judged(now)
    information, identity = judged
    document = Collateral.parse(octets)
    _same(information.id.lower(), tee, "TEE")
    _same(information.fmspc.hex().upper(), fmspc, "FMSPC")
    lists = [parse_crl(each, what="CRL") for each in (document.root_ca_crl, document.pck_crl)]
    _same("processor" if "Processor" in lists[1].issuer.rfc4514_string() else "platform", authority, "PCK CA")
    ends = [each.end for each in lists]
    texts = ((each.evaluation_number, each.issued.timestamp()) for each in judged)
    return Judged(
        min([information.next_update, identity.next_update, *(end for end in ends if end is not None)]),
        (*texts, *map(_lateness, lists)),
    )


def _vcek(wanted: Wanted, octets: bytes, now: datetime, trusted: Trusted, checks: Checklist) -> Judged:
    product, chip, tcb = _words(wanted, 3)
    found = SnpCertificate.parse(octets, kind="VCEK")
    found.verify(kind="VCEK", issuers=trusted.amd, now=now, checks=checks, require_revocation=False)
    _same(found.product, product, "product")
    _same((found.hwid or b"").hex(), chip, "chip")
    fmc = [found.tcb.fmc] if product == "Turin" else []
    parts = [found.tcb.bootloader, found.tcb.tee, found.tcb.snp, found.tcb.microcode, *fmc]
    _same(".".join(map(str, parts)), tcb, "TCB")
    return Judged(found.certificate.not_valid_after_utc)


def _amd_crl(wanted: Wanted, octets: bytes, now: datetime, trusted: Trusted, checks: Checklist) -> Judged:
    kind, product = _words(wanted, 2)
    if kind not in ("vcek", "vlek") or product not in PRODUCTS:
        raise MalformedInput(f"AMD has no {kind} of {product}")
    crl = parse_crl(octets, what="AMD CRL")
    check_crl(crl, issuer=trusted.amd(product, kind.upper())[1], now=now, checks=checks, name="amd-crl")
    return Judged(crl.end or now, (_lateness(crl),))


def _lateness(crl: RevocationList) -> tuple[float | None, ...]:
    return crl.number, crl.begin.timestamp()


def _rim(wanted: Wanted, octets: bytes, now: datetime, trusted: Trusted, checks: Checklist) -> Judged:
    from strongroom.evidence.nvidia import NvidiaVerifier
    from strongroom.evidence.nvidia_rim import Rim, SignedRim
    from strongroom.evidence.types import Endorsements

    verifier = NvidiaVerifier(rim_root=trusted.nvidia_rim)
    policy = verifier.policy(Fields({}, where="nvidia"))
    verifier.verify_endorsements(Endorsements({"driver_rim": octets}), now, policy, checks)
    signed = SignedRim.parse(octets)
    if checks.failed or signed is None:
        return Judged(now)
    version = Rim.parse(signed.content).version
    ending = version if "_DRIVER_" in wanted.name else version.replace(".", "")
    if not _words(wanted, 1)[0].upper().endswith("_" + ending.upper()):
        raise MalformedInput(f"it is for version {version}")
    return Judged(min(each.not_valid_after_utc for each in signed.chain))


def _ocsp(wanted: Wanted, octets: bytes, now: datetime, trusted: Trusted, checks: Checklist) -> Judged:
    if len(wanted.context) != 2:
        raise MalformedInput("an OCSP answer needs its certificate and issuer beside it")
    certificate, issuer = (parse_certificate(each, what="certificate") for each in wanted.context)
    answer = Lists.parse({"ocsp": octets}).responses[0]
    if not speaks_of(answer, certificate, issuer):
        raise MalformedInput("it is not an answer about this certificate")
    answer_holds(answer, issuer, now, checks, "ocsp")  # also one that says "revoked" is kept, for verifiers to see
    order = (answer.this_update_utc.timestamp(), answer.produced_at_utc.timestamp())
    return Judged(answer.next_update_utc or now, (order,))


def _crl(wanted: Wanted, octets: bytes, now: datetime, trusted: Trusted, checks: Checklist) -> Judged:
    if len(wanted.context) != 2:
        raise MalformedInput("a CRL needs its certificate and issuer beside it")
    certificate, issuer = (parse_certificate(each, what="certificate") for each in wanted.context)
    _same(certificate.issuer.rfc4514_string(), issuer.subject.rfc4514_string(), "issuer")
    crl = parse_crl(octets, what="CRL")
    check_crl(crl, issuer=issuer, now=now, checks=checks, name="crl")
    return Judged(crl.end or now, (_lateness(crl),))


def read_rim_answer(octets: bytes) -> bytes:
    """The XML inside the RIM service's JSON answer, or the octets themselves where they are XML already."""
    if octets.lstrip()[:1] != b"{":
        return octets
    from strongroom.encoding import unb64

    return unb64(str(Fields(parse_json(octets, where="RIM service"), where="RIM service").value("rim")), where="RIM")
