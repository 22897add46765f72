"""Revocation lists and answers: fetched where a vendor says, and nowhere that a stranger says."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from collateral.test_collateral_cache import Clock, accepted, gpu_evidence, nvidia_cache, trusting, web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from doubles.azure_guest import AzureGuest
from doubles.nvidia_device import PretendNvidia
from doubles.paper_tpm import NOW as TPM_NOW
from doubles.paper_tpm import Maker, PaperTpm, der, maker, rsa_key
from doubles.tee_devices import nitro_document
from doubles.vendor_services import VendorServices, vendor_services
from evidence import pki, test_nitro
from strongroom.collateral.cache import EndorsementCache
from strongroom.collateral.sources import CrlSource, OcspSource
from strongroom.collateral.store import Store
from strongroom.collateral.trusted import Trusted
from strongroom.collateral.wanted import wanted_for
from strongroom.encoding import Fields, b64, b64url
from strongroom.errors import CollateralUnavailable
from strongroom.evidence.ear import EarVerifier
from strongroom.evidence.nitro import NitroVerifier
from strongroom.evidence.policy import Policy
from strongroom.evidence.tpm import TpmVerifier
from strongroom.evidence.tpm_evidence import TpmEvidence
from strongroom.evidence.types import Checklist, Endorsements, Evidence

STRICT = {"require_revocation_status": True}


@pytest.fixture
def services():
    with vendor_services() as running:
        yield running


@pytest.fixture(scope="module")
def nvidia() -> PretendNvidia:
    return PretendNvidia()


def listed_at(name: str) -> tuple[x509.CRLDistributionPoints, bool]:
    address = x509.UniformResourceIdentifier(f"http://crl.example/{name}")
    return x509.CRLDistributionPoints([x509.DistributionPoint([address], None, None, None)]), False


def cache_of(services: VendorServices, folder: Path, trusted: Trusted, clock: Clock) -> EndorsementCache:
    def here(url: str) -> str:
        return services.url + "/" + url.split("/", 3)[3]

    return EndorsementCache(Store(folder), [CrlSource(here, web())], trusted=trusted, clock=clock)


# -- strangers ---------------------------------------------------------------------------------------


def test_an_address_that_no_vendor_signed_is_never_asked(services, nvidia, tmp_path):
    """Evidence comes from anybody, and a certificate in it names any address: also one inside our network."""
    stranger = PretendNvidia()
    assert {each.kind for each in wanted_for(gpu_evidence(stranger), trusting(nvidia))} == {"rim"}
    assert "ocsp" in {each.kind for each in wanted_for(gpu_evidence(stranger), trusting(stranger))}
    cache = nvidia_cache(services, nvidia, tmp_path, Clock())
    cache(gpu_evidence(stranger))
    assert [line for line in services.log if line.startswith("POST")] == []
    cache(gpu_evidence(nvidia))
    assert [line for line in services.log if line.startswith("POST")] != []


def test_the_same_holds_for_lists(services, tmp_path):
    aws = pki.Authority.root("aws", usage=("key_cert_sign", "crl_sign"))
    leaf = aws.issue("enclave", extensions=(listed_at("aws"),))
    evidence = Evidence("aws-nitro", {"document": b64(nitro_document(aws, leaf, (), bytes(64), at=pki.NOW))})
    assert wanted_for(evidence) == ()  # AWS's own root did not sign this
    assert [each.kind for each in wanted_for(evidence, Trusted(aws=aws.certificate))] == ["crl"]


def test_a_cut_or_reordered_chain_leads_nowhere(nvidia):
    device = gpu_evidence(nvidia).body["device_evidence_list"][0]
    pem = nvidia.chain
    blocks = [each + b"-----END CERTIFICATE-----\n" for each in pem.split(b"-----END CERTIFICATE-----\n")[:-1]]
    for chain in (blocks[:1], blocks[::-1]):
        evidence = Evidence("nvidia", {"device_evidence_list": [{**device, "certificate": b64(b"".join(chain))}]})
        assert {each.kind for each in wanted_for(evidence, trusting(nvidia))} == {"rim"}


# -- Nitro -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def enclaves():
    """(root, region, enclave): as AWS's, the enclave's certificate names no list and its region's does."""
    usage = ("key_cert_sign", "crl_sign")
    root = pki.Authority.root("aws.nitro-enclaves", usage=usage)
    region = root.issue("region", ca=True, usage=usage, extensions=(listed_at("root"),))
    zone = region.issue("zone", ca=True, usage=usage, extensions=(listed_at("region"),))
    return root, region, zone, zone.issue("i-0-enc0")


def document(enclaves) -> Evidence:
    root, region, zone, leaf = enclaves
    return Evidence(
        "aws-nitro", {"document": b64(nitro_document(root, leaf, (region, zone), test_nitro.BINDING, at=pki.NOW))}
    )


def serve_lists(services, enclaves, *revoked, end=pki.NOW + timedelta(days=1)) -> None:
    root, region, *_ = enclaves
    for name, authority in (("root", root), ("region", region)):
        octets = authority.crl(*revoked, end=end).public_bytes(Encoding.DER)
        services.answers[f"/{name}"] = (octets, {})


def test_the_lists_of_a_nitro_chain_satisfy_the_strictest_policy(services, enclaves, tmp_path):
    serve_lists(services, enclaves)
    cache = cache_of(services, tmp_path, Trusted(aws=enclaves[0].certificate), Clock(pki.NOW))
    verifier = NitroVerifier(roots=(enclaves[0].certificate,))
    assert accepted(verifier, document(enclaves), cache(document(enclaves)), STRICT) == []
    asked = list(services.log)
    assert accepted(verifier, document(enclaves), cache(document(enclaves)), STRICT) == []
    assert services.log == asked, "a second verdict asks nobody"


def test_a_revoked_region_is_seen(services, enclaves, tmp_path):
    serve_lists(services, enclaves, enclaves[1].certificate)
    cache = cache_of(services, tmp_path, Trusted(aws=enclaves[0].certificate), Clock(pki.NOW))
    verifier = NitroVerifier(roots=(enclaves[0].certificate,))
    assert accepted(verifier, document(enclaves), cache(document(enclaves))) == ["nitro.revoked"]


def test_a_list_is_not_used_past_its_next_update_nor_kept_when_another_signed_it(services, enclaves, tmp_path):
    trusted = Trusted(aws=enclaves[0].certificate)
    serve_lists(services, enclaves, end=pki.NOW + timedelta(hours=1))
    clock = Clock(pki.NOW)
    cache = cache_of(services, tmp_path / "one", trusted, clock)
    assert len(cache(document(enclaves)).items) == 2
    services.answers.clear()
    clock.now += timedelta(hours=2)
    assert cache(document(enclaves)).items == {}
    impostor = pki.Authority.root("aws.nitro-enclaves", usage=("key_cert_sign", "crl_sign"))
    services.answers["/root"] = (impostor.crl().public_bytes(Encoding.DER), {})
    other = cache_of(services, tmp_path / "two", trusted, Clock(pki.NOW))
    assert other(document(enclaves)).items == {}
    assert list(other.store) == []


def test_lists_are_named_on_stderr_only_where_they_cannot_be_had(services, enclaves, tmp_path):
    cache = cache_of(services, tmp_path, Trusted(aws=enclaves[0].certificate), Clock(pki.NOW))
    kept, missing = cache.fetch_for(document(enclaves))
    assert kept == []
    assert len(missing) == 2


def test_a_list_travels_in_a_bundle(services, enclaves, tmp_path):
    from strongroom.collateral.store import read_bundle, write_bundle

    serve_lists(services, enclaves)
    trusted = Trusted(aws=enclaves[0].certificate)
    cache = cache_of(services, tmp_path / "here", trusted, Clock(pki.NOW))
    cache(document(enclaves))
    assert write_bundle(cache.store, tmp_path / "all.json") == 2
    there = EndorsementCache(Store(tmp_path / "there"), (), trusted=trusted, clock=Clock(pki.NOW))
    kept, refused = there.take_in(read_bundle(tmp_path / "all.json"))
    assert (len(kept), refused) == (2, [])
    assert len(there(document(enclaves)).items) == 2


# -- TPM, Azure, AMD ---------------------------------------------------------------------------------


def test_the_lists_of_a_certified_attestation_key_satisfy_the_strictest_policy(services, tmp_path):
    tpm, cloud = PaperTpm(), maker("Cloud")
    evidence = tpm.evidence(ak_cert=der(cloud.certificate(tpm.private)))
    for by in (0, 1):
        services.answers[f"/crl/{by}"] = (cloud.crl(by=by), {})
    trusted = Trusted(google=(cloud.root, cloud.intermediate))
    endorsements = cache_of(services, tmp_path, trusted, Clock(TPM_NOW))(evidence)
    assert len(endorsements.items) == 2
    assert wanted_for(evidence) == ()  # Google's own roots did not sign this

    def failed(given: Endorsements) -> list[str]:
        checks, verifier = Checklist(), TpmVerifier()
        policy = verifier.policy(Fields(STRICT | {"ak_roots": cloud.pem}, where="tpm"))
        verifier.verify(evidence, given, TPM_NOW, policy, checks)
        return [check.name for check in checks.failed]

    assert failed(endorsements) == []
    assert failed(Endorsements()) == ["tpm.ak-certificate.revoked"]


@pytest.fixture
def made():
    """(evidence, policy text): a TPM whose maker only the policy names, and that shows its EK's certificate."""
    ours = Maker("Maker of TPMs")
    shown = der(ours.certificate(rsa_key(2048, 9), endorsement=True))
    text = f'name = "ours"\n[tpm]\nek_roots = """\n{ours.pem}"""\n'
    return ours, PaperTpm().evidence(ek_cert=shown), Policy.parse(text, {"tpm": TpmVerifier()})


def test_the_lists_of_a_maker_that_a_policy_names_are_fetched_under_that_policy_alone(services, made, tmp_path):
    ours, evidence, policy = made
    for by in (0, 1):
        services.answers[f"/crl/{by}"] = (ours.crl(by=by), {})
    cache = cache_of(services, tmp_path, Trusted(), Clock(TPM_NOW))
    assert cache(evidence).items == {}
    assert services.log == [], "nobody vouched for these addresses"
    other = Maker("Another maker")
    text = f'name = "theirs"\n[tpm]\nek_roots = """\n{other.pem}"""\n'
    assert cache(evidence, Policy.parse(text, {"tpm": TpmVerifier()})).items == {}
    assert services.log == []
    assert len(cache(evidence, policy).items) == 2
    kept, missing = cache.fetch_for(evidence, policy)
    assert (len(kept), missing) == (2, [])


def test_an_endorsement_key_that_its_maker_took_back_is_refused(services, made, tmp_path):
    ours, evidence, policy = made
    octets = TpmEvidence.parse(evidence.body).ek_cert
    services.answers["/crl/0"] = (ours.crl(by=0), {})
    services.answers["/crl/1"] = (ours.crl(x509.load_der_x509_certificate(octets)), {})
    given = cache_of(services, tmp_path, Trusted(), Clock(TPM_NOW))(evidence, policy)
    checks = Checklist()
    TpmVerifier().verify(evidence, given, TPM_NOW, policy.tees["tpm"], checks)
    assert "tpm.ek-certificate.revoked" in {check.name for check in checks.failed}


def test_the_lists_of_a_verifier_that_a_policy_names_are_fetched(services, tmp_path):
    usage = ("key_cert_sign", "crl_sign")
    root = pki.Authority.root("Verifier CA", usage=usage)
    service = root.issue("Attestation service", extensions=(listed_at("verifier"),))
    chain = [b64(each.certificate.public_bytes(Encoding.DER)) for each in (service, root)]
    head = b64url(json.dumps({"alg": "ES256", "jwk": {"x5c": chain}}).encode())
    evidence = Evidence("ear", {"token": f"{head}.{b64url(b'{}')}.{b64url(bytes(64))}"})
    pem = root.certificate.public_bytes(Encoding.PEM).decode()
    policy = Policy.parse(f'name = "x"\n[ear]\ntrusted_certificates = """\n{pem}"""\n', {"ear": EarVerifier()})
    services.answers["/verifier"] = (root.crl().public_bytes(Encoding.DER), {})
    cache = cache_of(services, tmp_path, Trusted(), Clock(pki.NOW))
    assert cache(evidence).items == {}
    assert len(cache(evidence, policy).items) == 1


def test_amds_list_is_wanted_for_a_guest_on_azure_and_for_reports_that_bring_their_certificate(shared_evidence):
    guest = AzureGuest()
    assert [each.name for each in wanted_for(guest.protocol())] == ["amd-crl/vcek/Milan"]
    folder = shared_evidence / "sev-snp" / "milan-v2-vcek"  # version 2: the report does not name its product
    from strongroom.evidence.snp_report import SnpReport, to_serde

    report = SnpReport.parse((folder / "report.bin").read_bytes())
    body = {"attestation_report": to_serde(report), "cert_chain": None}
    assert wanted_for(Evidence("snp", body)) == ()
    body["cert_chain"] = [{"cert_type": "VCEK", "data": list((folder / "vcek.der").read_bytes())}]
    assert [each.name for each in wanted_for(Evidence("snp", body))] == ["amd-crl/vcek/Milan"]


def test_real_chains_name_the_lists_of_their_vendors(shared_evidence):
    from strongroom.evidence.certificates import parse_certificate
    from strongroom.evidence.revocation import list_of

    def addresses(tee: str, body: dict) -> list[str | None]:
        return [list_of(parse_certificate(each.context[0], what="x")) for each in wanted_for(Evidence(tee, body))]

    octets = (shared_evidence / "aws-nitro" / "us-east-1-2025" / "attestation_doc.cose").read_bytes()
    found = addresses("aws-nitro", {"document": b64(octets)})
    assert len(found) == 2
    assert all("aws-nitro-enclaves" in str(each) for each in found)
    octets = (shared_evidence / "tpm" / "gce-no-nonce" / "ak_cert.der").read_bytes()
    found = addresses("tpm", {"ak_cert": b64(octets), "quotes": {}})
    assert len(found) == 2
    assert all("pki.goog" in str(each) for each in found)


def test_a_list_that_nobody_has_says_so(services, enclaves, tmp_path):
    cache = cache_of(services, tmp_path, Trusted(aws=enclaves[0].certificate), Clock(pki.NOW))
    (first, _) = wanted_for(document(enclaves), Trusted(aws=enclaves[0].certificate))
    with pytest.raises(CollateralUnavailable, match="crl/"):
        cache.obtain(first)


def test_ocsp_and_lists_are_asked_of_web_addresses_alone(enclaves):
    wanted = wanted_for(document(enclaves), Trusted(aws=enclaves[0].certificate))[0]
    root = pki.Authority.root()
    address = x509.UniformResourceIdentifier("file:///etc/passwd")
    point = x509.CRLDistributionPoints([x509.DistributionPoint([address], None, None, None)])
    leaf = root.issue("leaf", extensions=((point, False),))
    from dataclasses import replace

    context = tuple(each.certificate.public_bytes(Encoding.DER) for each in (leaf, root))
    assert CrlSource().fetch(replace(wanted, context=context)) is None
    assert OcspSource().fetch(replace(wanted, context=context)) is None
