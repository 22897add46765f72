"""The keeper's client at a broker that answers as a stock Trustee does, and at one that misbehaves."""

from __future__ import annotations

import base64
import json

import pytest
from broker.trustee_double import Trustee, trustee_running
from strongroom.broker.document import ModelKeyDocument, model_key_name
from strongroom.broker.statement import KeeperStatement
from strongroom.errors import (
    AttestationFailed,
    BrokerUnreachable,
    ProtocolMismatch,
    ReleaseDenied,
    ReleaseError,
    ResourceMissing,
)
from strongroom.evidence.types import Evidence
from strongroom.keeper import release
from strongroom.keeper.release import ReleaseClient
from strongroom.keys import ArchiveDigest, ModelKey

ARCHIVE, KEY = ArchiveDigest(b"\7" * 32), ModelKey(b"\x42" * 32)
NAME = tuple(model_key_name("acme", "digits", 3, ARCHIVE))


class SampleAttester:
    """KBS ``sample`` evidence: its report data is the digest, unpadded."""

    tee = "sample"

    def __init__(self, tee="sample"):
        self.tee, self.digests = tee, []

    def evidence(self, report_data):
        self.digests.append(report_data)
        return Evidence(self.tee, {"svn": "1", "report_data": base64.b64encode(report_data).decode()})


@pytest.fixture
def trustee():
    with trustee_running() as trustee:
        stored = ModelKeyDocument(ARCHIVE, KEY, version=3).serialise()
        trustee.resources["/".join(NAME)] = stored
        yield trustee


def client(trustee, **options):
    options.setdefault("attester", SampleAttester())
    return ReleaseClient(trustee.url, timeout=5, pause_s=0.01, **options)


def fetch(trustee, **options):
    return client(trustee, **options).fetch(NAME, ARCHIVE)


@pytest.mark.parametrize("ends", ["Thu, 01 Jan 1970 00:00:01 GMT", "Wed, 01 Jan 2020 00:00:00 GMT", "no date", ""])
def test_a_session_that_by_our_own_wall_clock_is_over_is_used_all_the_same(trustee, ends):
    trustee.cookie_ends = ends  # as a broker's five minutes look to a keeper whose host set its date forwards
    assert fetch(trustee).archive == ARCHIVE


def test_a_stock_trustee_releases_the_key_without_a_lease(trustee):
    released = fetch(trustee)
    assert released.key.reveal() == KEY.reveal()
    assert (released.version, released.lease_s, released.broker_time) == (3, None, None)


@pytest.mark.parametrize("extra", ["", None, {}, {"selected-hash-algorithm": "SHA384"}, {"unknown": [1]}])
def test_any_extra_params_of_a_challenge_will_do(trustee, extra):
    trustee.extra_params = extra
    assert fetch(trustee).key.reveal() == KEY.reveal()


def test_device_evidence_travels_beside_and_is_collected_first(trustee):
    device = SampleAttester("sampledevice")
    fetch(trustee, additional=[device])
    assert set(trustee.seen[0]) == {"sampledevice"}
    assert base64.b64decode(trustee.seen[0]["sampledevice"]["report_data"]) == device.digests[0]


def test_a_stock_trustee_never_sees_the_keepers_statement(trustee):
    fetch(trustee, statement=KeeperStatement(b"k" * 16))
    assert trustee.seen == [{}]


def test_each_handshake_has_a_tee_key_of_its_own(trustee):
    attester = SampleAttester()
    both = client(trustee, attester=attester)
    both.fetch(NAME, ARCHIVE)
    both.fetch(NAME, ARCHIVE)
    keys = [session["jwk"]["x"] for session in trustee.sessions.values()]
    assert len(set(keys)) == 2


def test_another_version_is_a_protocol_mismatch(trustee):
    text = (
        "Attestation error: RCAR handshake Auth failed: KBS Client Protocol Version Mismatch: "
        "expect =0.5.0 while the request is 0.4.0"
    )
    trustee.faults["auth"] = lambda n: (401, Trustee.error("AttestationError", text))
    with pytest.raises(ProtocolMismatch, match=r"0\.5\.0"):
        fetch(trustee)
    assert trustee.counts["auth"] == 1


def test_a_policy_that_says_no_is_not_asked_twice_and_shows_the_statuses(trustee):
    trustee.faults["resource"] = lambda n: (401, Trustee.error("PolicyDeny", "Access denied by policy"))
    with pytest.raises(ReleaseDenied, match="cpu0: affirming, gpu0: warning"):
        fetch(trustee)
    assert trustee.counts["resource"] == 1


def test_a_missing_resource_says_what_to_check(trustee):
    trustee.resources.clear()
    with pytest.raises(ResourceMissing) as missing:
        fetch(trustee)
    assert "registered" in missing.value.hint
    assert trustee.counts["resource"] == 1


def test_a_session_lost_between_attest_and_get_is_made_anew(trustee):
    lost = (401, Trustee.error("TokenNotFound", "Attestation Token not found"))
    trustee.faults["resource"] = lambda n: lost if n == 1 else None
    assert fetch(trustee).key.reveal() == KEY.reveal()
    assert trustee.counts["auth"] == 2


def test_refused_evidence_is_not_sent_again(trustee):
    refused = (401, Trustee.error("AttestationError", "Attestation error: RCAR handshake Attest failed"))
    trustee.faults["attest"] = lambda n: refused
    with pytest.raises(AttestationFailed) as failed:
        fetch(trustee)
    assert trustee.counts["attest"] == 1
    assert "log" in failed.value.hint


def test_evidence_refused_in_an_old_session_is_made_anew(trustee, monkeypatch):
    monkeypatch.setattr(release, "FRESH_S", -1.0)
    refused = (401, Trustee.error("AttestationError", "Attestation error: RCAR handshake Attest failed"))
    trustee.faults["attest"] = lambda n: refused if n == 1 else None
    assert fetch(trustee).key.reveal() == KEY.reveal()


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_gateway_in_trouble_is_tried_again(trustee, status):
    trustee.faults["auth"] = lambda n: (status, b"<html>bad gateway</html>") if n < 3 else None
    assert fetch(trustee).key.reveal() == KEY.reveal()


def test_a_broker_that_asks_us_to_slow_down_is_asked_again_and_says_so(trustee):
    trustee.faults["auth"] = lambda n: (429, b"") if n < 3 else None
    assert fetch(trustee).key.reveal() == KEY.reveal()
    trustee.faults["resource"] = lambda n: (429, b"")
    with pytest.raises(BrokerUnreachable, match="slow down") as slowed:
        fetch(trustee)
    assert "--pace" in slowed.value.hint


def test_a_strangers_answer_is_shown_by_its_first_bytes(trustee):
    trustee.faults["auth"] = lambda n: (403, b"<html>Forbidden by the proxy</html>")
    with pytest.raises(BrokerUnreachable, match="Forbidden by the proxy"):
        fetch(trustee)


@pytest.mark.parametrize("step", ["auth", "attest", "resource"])
@pytest.mark.parametrize("body", [b"", b"[]", b"\xff\xfe", b'{"nonce":""}', b"{" * 5000, b'{"token":5}'])
def test_nonsense_with_status_200_is_an_error_of_ours(trustee, step, body):
    trustee.faults[step] = lambda n: (200, body)
    with pytest.raises(ReleaseError):
        fetch(trustee)


def test_an_endless_answer_is_cut_off(trustee):
    trustee.faults["resource"] = lambda n: (200, b"x" * (release.RESOURCE_LIMIT + 1))
    with pytest.raises(BrokerUnreachable, match="more than"):
        fetch(trustee)


@pytest.mark.parametrize("member", ["aad", "header", "unprotected"])
def test_a_resource_with_a_further_member_is_refused(trustee, member):
    honest = trustee.resource

    def forged(session, path):
        status, body = honest(session, path)
        return status, {**body, member: "AA"}

    trustee.resource = forged
    with pytest.raises(ReleaseError, match="does not open"):
        fetch(trustee)


def test_a_redirect_is_not_followed(trustee):
    trustee.faults["auth"] = lambda n: (307, b"")
    with pytest.raises(BrokerUnreachable, match="HTTP 307"):
        fetch(trustee)


def test_a_key_of_another_archive_is_refused(trustee):
    other = ModelKeyDocument(ArchiveDigest(bytes(32)), KEY, version=3)
    trustee.resources["/".join(NAME)] = other.serialise()
    with pytest.raises(ReleaseError, match="not the key of that archive"):
        fetch(trustee)


def test_raw_bytes_are_no_model_key(trustee):
    trustee.resources["/".join(NAME)] = KEY.reveal()
    with pytest.raises(ReleaseError, match="not the key"):
        fetch(trustee)


def test_no_error_shows_the_key_or_the_body(trustee):
    trustee.resources["/".join(NAME)] = json.dumps({"strongroom": "model-key/1", "key": "SECRETKEY" * 5}).encode()
    with pytest.raises(ReleaseError) as refused:
        fetch(trustee)
    assert "SECRETKEY" not in str(refused.value)
