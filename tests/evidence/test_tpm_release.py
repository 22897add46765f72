"""A model key for a machine with a TPM: real broker, real client, real software TPM, over a real socket."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from broker.broker_in_a_room import broker_room
from broker.test_composite import ARCHIVE, KEY, NAME
from broker.trustee_double import trustee_running
from cryptography import x509
from doubles.paper_tpm import NOW, Maker, der
from doubles.software_tpm import SoftwareTpm
from doubles.vendor_services import vendor_services
from strongroom.broker.document import ModelKeyDocument
from strongroom.broker.statement import KeeperStatement
from strongroom.collateral.cache import EndorsementCache
from strongroom.collateral.patience import Patience
from strongroom.collateral.sources import CrlSource, Web
from strongroom.collateral.store import Store
from strongroom.errors import AttestationFailed, ReleaseDenied
from strongroom.keeper.release import ReleaseClient
from strongroom.keys import ArchiveDigest

pytest.importorskip("tpm2_pytss", reason="SKIPPED LOUDLY: tpm2-pytss is not installed")
from strongroom.attest.tpm import TpmAttester

CONFIGURATION = bytes(range(32))
STATEMENT = KeeperStatement(keeper=bytes(16))


@pytest.fixture(scope="module")
def tpm(tmp_path_factory):
    with SoftwareTpm(tmp_path_factory.mktemp("tpm") / "machine") as machine:
        yield machine


@pytest.fixture(scope="module")
def attester(tpm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("host")
    with TpmAttester(tpm.tcti, event_log=folder / "none", launch_log=folder / "launch.json") as mine:
        mine.extend(CONFIGURATION, "configuration")
        yield mine


def appraisal(tpm, configuration=CONFIGURATION):
    return f"""
name = "machines with a TPM"
[tpm]
ak_trust = "activated"
launch = {{ configuration = ["{configuration.hex()}"] }}
pcrs = {{ "0" = "{"00" * 32}", "4" = "{"00" * 32}" }}
ek_roots = '''
{tpm.roots}'''
"""


@pytest.fixture(scope="module")
def room(tpm, tmp_path_factory):
    with broker_room(tmp_path_factory.mktemp("room"), rego="measured", appraisal=appraisal(tpm)) as room:
        yield room


def test_an_activated_tpm_gets_the_key_under_the_measured_policy(room, attester):
    name, archive, key = room.register(1)
    released = room.client(attester=attester, statement=STATEMENT).fetch(tuple(name), archive)
    assert released.key.reveal() == key.reveal()
    cpu = released.claims["submods"]["cpu0"]
    assert cpu["ear.status"] == "affirming"
    assert cpu["strongroom.revocation"] == "no-list"  # the software TPM's maker publishes none
    evidence = cpu["ear.veraison.annotated-evidence"]
    assert evidence["tpm"]["launch.configuration"] == CONFIGURATION.hex()
    assert evidence["provenance"]["launch.configuration"] == "event-log"


def test_a_tpm_whose_maker_publishes_lists_gets_the_key_under_a_shipped_policy(tpm, attester, tmp_path, monkeypatch):
    """The broker fetches the lists itself, from where the maker says that its appraisal policy names."""
    ours = Maker("Maker with lists")
    certificate = ours.certificate(x509.load_der_x509_certificate(attester.ek_certificate), endorsement=True)
    monkeypatch.setattr(attester, "_ek_cert", der(certificate))
    with vendor_services() as services:
        here = [CrlSource(lambda url: f"{services.url}/{url.split('/', 3)[3]}", Web(timeout=5.0))]
        patience = Patience(retry_after=timedelta(0))
        options = {
            "rego": "measured",
            "appraisal": appraisal(tpm).replace(tpm.roots, ours.pem),
            "clock": NOW.timestamp,
            "endorsements": EndorsementCache(Store(tmp_path / "lists"), here, clock=lambda: NOW, patience=patience),
        }
        with broker_room(tmp_path / "room", **options) as room:
            document = ModelKeyDocument(ARCHIVE, KEY, version=1)
            room.broker.store.put_resource(NAME, document.serialise(), at=0, archive=str(ARCHIVE), version=1)
            client = room.client(attester=attester, statement=STATEMENT)
            with pytest.raises(ReleaseDenied, match=r"without a current revocation list for cpu0$"):
                client.fetch(tuple(NAME), ARCHIVE)
            for by in (0, 1):
                services.answers[f"/crl/{by}"] = (ours.crl(by=by), {})
            released = client.fetch(tuple(NAME), ARCHIVE)
    assert released.key.reveal() == KEY.reveal()
    assert released.claims["submods"]["cpu0"]["strongroom.revocation"] == "judged"


def test_each_handshake_has_a_credential_of_its_own(room, attester):
    name, archive, _ = room.register(2)
    client = room.client(attester=attester, statement=STATEMENT)
    for _ in range(3):
        client.fetch(tuple(name), archive)


def test_another_configuration_gets_no_key(tmp_path, tpm, attester):
    with broker_room(tmp_path, rego="measured", appraisal=appraisal(tpm, bytes(32))) as room:
        name, archive, _ = room.register(1)
        with pytest.raises(AttestationFailed):
            room.client(attester=attester, statement=STATEMENT).fetch(tuple(name), archive)
        last = json.loads(list(room.broker.audit.entries())[-1])
    assert [check["name"] for check in last["checks"]] == ["tpm.launch-configuration"]


def test_a_keeper_that_does_not_announce_itself_gets_no_key(room, attester):
    """Without the announcement there is no credential, and what is left is a bare key."""
    name, archive, _ = room.register(3)
    with pytest.raises(AttestationFailed):
        room.client(attester=attester).fetch(tuple(name), archive)
    last = json.loads(list(room.broker.audit.entries())[-1])
    assert "tpm.activation" in {check["name"] for check in last["checks"]}


class Thief:
    """Announces an honest TPM and attests with another: the answer cannot be made."""

    tee = "tpm"

    def __init__(self, honest, own):
        self._honest, self._own = honest, own
        self.announce, self.protocol_evidence = honest.announce, own.protocol_evidence

    def respond(self, challenge):
        self._honest.respond(challenge)
        self._answer = self._honest.evidence(bytes(32)).body["activation"]

    def evidence(self, report_data):
        evidence = self._own.evidence(report_data)
        return type(evidence)("tpm", {**evidence.body, "activation": self._answer})


def test_an_answer_that_an_honest_tpm_made_for_another_quote_is_refused(room, attester, tpm, tmp_path):
    name, archive, _ = room.register(4)
    own = TpmAttester(tpm.tcti, ak="ecc", event_log=tmp_path / "none", launch_log=tmp_path / "none.json")
    with own, pytest.raises(AttestationFailed):
        room.client(attester=Thief(attester, own), statement=STATEMENT).fetch(tuple(name), archive)
    last = json.loads(list(room.broker.audit.entries())[-1])
    assert "not activated" in json.dumps(last)


def test_an_announcement_that_cannot_be_used_is_refused_at_once(room, attester):
    class Garbled:
        tee = "tpm"
        respond, evidence, protocol_evidence = attester.respond, attester.evidence, attester.protocol_evidence

        def announce(self):
            return {"ek_cert": "AAAA", "ak_pub": "AAAA"}

    name, archive, _ = room.register(5)
    with pytest.raises(AttestationFailed, match="handshake"):
        room.client(attester=Garbled(), statement=STATEMENT).fetch(tuple(name), archive)


def test_a_broker_that_knows_no_credentials_gets_the_protocols_own_form(attester):
    asked = []

    class Listening:
        tee = "tpm"
        announce, respond, evidence = attester.announce, attester.respond, attester.evidence

        def protocol_evidence(self, report_data):
            asked.append(attester.protocol_evidence(report_data))
            return asked[-1]

    with trustee_running() as trustee:
        trustee.faults["attest"] = lambda _: (401, trustee.error("AttestationError", "judged elsewhere"))
        client = ReleaseClient(trustee.url, attester=Listening(), statement=STATEMENT, pause_s=0.01)
        with pytest.raises(AttestationFailed, match="judged elsewhere"):
            client.fetch(("acme", "digits", "1-" + "00" * 32), ArchiveDigest(bytes(32)))
    assert [sorted(each.body) for each in asked] == [["ak_public", "tpm_quote"]]


def test_a_key_in_a_file_with_a_certificate_of_the_same_ca_is_no_endorsement_key():
    """Whoever has the private key opens any credential, so the certificate has to be an EK's."""
    from datetime import timedelta

    from doubles.paper_tpm import NOW, PaperTpm, der, maker, rsa_key
    from strongroom.encoding import Fields
    from strongroom.evidence.tpm import TpmVerifier
    from strongroom.evidence.tpm_credential import Activation, Challenge, activation_answer
    from strongroom.evidence.types import Checklist, Endorsements

    in_a_file = der(maker().certificate(rsa_key(2048, 4)))
    tpm = PaperTpm()
    challenge = Challenge.make(in_a_file, tpm.public.serialise())
    message = tpm.quote().serialise()
    activation = challenge.answered(activation_answer(challenge._secret, message), message)
    assert isinstance(activation, Activation)
    verifier, checks = TpmVerifier(activation=activation), Checklist()
    policy = verifier.policy(Fields({"ak_trust": "activated", "ek_roots": maker().pem}, where="tpm"))
    verifier.verify(tpm.evidence(ek_cert=in_a_file), Endorsements(), NOW + timedelta(days=1), policy, checks)
    assert [check.name for check in checks.failed] == ["tpm.ek-usage"]
