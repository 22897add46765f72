"""The broker as it is seen on the wire: exact answers, sessions on a clock of our own, limits."""

from __future__ import annotations

import base64
import json
import re

import pytest
from broker.broker_in_a_room import APPRAISAL, Clock, Peer, broker_room, error_of
from strongroom.broker.statement import KeeperStatement
from strongroom.encoding import unb64url

LABELS = {"kind": {"attest", "release", "epoch"}, "outcome": {"granted", "refused", "failed"}}


@pytest.fixture(scope="module")
def clock():
    return Clock()


@pytest.fixture(scope="module")
def room(tmp_path_factory, clock):
    folder = tmp_path_factory.mktemp("room")
    with broker_room(folder, clock=lambda: clock.wall, steady=lambda: clock.steady) as room:
        room.admin_clock = clock
        yield room


@pytest.fixture(scope="module")
def resource(room):
    """A key put straight into the store: these tests move the clock, and an administrator's token is dated."""
    from strongroom.broker.document import ModelKeyDocument, model_key_name
    from strongroom.keys import ArchiveDigest, ModelKey

    archive = ArchiveDigest(b"\1" * 32)
    name = model_key_name("acme", "digits", 1, archive)
    document = ModelKeyDocument(archive, ModelKey(b"\2" * 32), version=1, lease_s=900)
    room.broker.store.put_resource(name, document.serialise(), at=0, archive=str(archive), version=1)
    return name


@pytest.fixture
def peer(room):
    return Peer(room)


def test_a_challenge_has_44_characters_of_nonce_and_an_empty_string(peer):
    answer = peer.auth()
    assert answer.headers["content-type"] == "application/json"
    fields = answer.json()
    assert list(fields) == ["nonce", "extra-params"] and fields["extra-params"] == ""
    assert len(fields["nonce"]) == 44 and len(base64.b64decode(fields["nonce"], validate=True)) == 32


def test_the_cookie_has_no_attribute_but_expires(peer):
    cookie = peer.auth().headers["set-cookie"]
    assert re.fullmatch(r"kbs-session-id=[0-9a-f]{32}; Expires=\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", cookie)


def test_only_who_announces_itself_is_asked_for_a_statement(peer):
    assert peer.auth({"supported-hash-algorithms": ["sha384"]}).json()["extra-params"] == ""
    asked = peer.auth({"strongroom": {"version": 1}}).json()["extra-params"]
    assert asked == {"strongroom": {"version": 1, "additional-evidence": ["strongroom"]}}


def test_another_version_gets_the_exact_words(peer):
    assert error_of(peer.auth(version="0.3.0")) == (
        401,
        "AttestationError",
        "Attestation error: RCAR handshake Auth failed: KBS Client Protocol Version Mismatch: "
        "expect =0.4.0 while the request is 0.3.0",
    )


def test_errors_have_no_content_type(peer):
    assert "content-type" not in peer.auth(version="9").headers


def test_an_unknown_tee_is_refused_at_auth(peer):
    assert error_of(peer.auth(tee="toaster"))[1] == "AttestationError"


def test_a_whole_handshake_gives_a_jwe_in_the_stock_clients_order(peer, resource):
    peer.auth()
    token = peer.attest().json()["token"]
    answer = peer.get(resource)
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["protected", "encrypted_key", "iv", "ciphertext", "tag"]
    header = unb64url(answer.json()["protected"]).decode()
    assert re.fullmatch(
        r'\{"alg":"ECDH-ES\+A256KW","enc":"A256GCM","epk":\{"crv":"P-256","kty":"EC","x":"[\w-]{43}","y":"[\w-]{43}"\}\}',
        header,
    )
    assert peer.opened(answer)["lease_s"] == 900
    claims = json.loads(unb64url(token.split(".")[1]))
    assert claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"]["runtime_data_claims"]["nonce"]
    assert claims["exp"] - claims["iat"] == 300


def test_a_token_works_as_a_bearer_too(room, peer, resource):
    peer.auth()
    token = peer.attest().json()["token"]
    stranger = Peer(room)
    stranger.keys = peer.keys
    assert stranger.opened(stranger.get(resource, headers={"Authorization": f"Bearer {token}"}))["archive"]


def test_an_attested_session_keeps_its_token_whatever_comes(peer):
    peer.auth()
    first = peer.attest().json()["token"]
    again = peer.attestation()
    again["tee-evidence"]["primary_evidence"] = {"nonsense": True}
    assert peer.attest(again).json()["token"] == first


def test_refused_evidence_leaves_the_session_usable(peer):
    peer.auth()
    broken = peer.attestation()
    broken["tee-evidence"]["primary_evidence"]["signature"] = ""
    assert error_of(peer.attest(broken)) == (
        401,
        "AttestationError",
        "Attestation error: RCAR handshake Attest failed",
    )
    assert peer.attest().ok


def test_without_a_session_there_is_no_token(peer, resource):
    assert error_of(peer.get(resource)) == (401, "TokenNotFound", "Attestation Token not found")


def test_a_session_that_never_attested_gets_nothing(peer, resource):
    peer.auth()
    assert error_of(peer.get(resource))[1] == "TokenNotFound"


def test_a_session_lives_five_minutes_from_auth_and_attest_does_not_extend_it(peer, clock, resource):
    peer.auth()
    clock.pass_(200)
    assert peer.attest().ok
    clock.pass_(99)
    assert peer.get(resource).ok
    clock.pass_(2)
    assert error_of(peer.get(resource))[1] in {"TokenNotFound", "TokenVerifierError"}


def test_a_session_ends_between_auth_and_attest(peer, clock):
    peer.auth()
    clock.pass_(301)
    assert error_of(peer.attest())[1] == "AttestationError"


def test_a_step_of_the_wall_clock_does_not_lengthen_a_session(peer, clock, resource):
    peer.auth()
    peer.attest()
    clock.wall -= 3600
    clock.steady += 301
    assert not peer.get(resource).ok
    clock.wall += 3600


def test_a_step_forward_ends_tokens_and_a_new_handshake_helps(peer, clock, resource):
    peer.auth()
    peer.attest()
    clock.wall += 86400
    assert error_of(peer.get(resource))[1] == "TokenVerifierError"
    peer.auth()
    peer.attest()
    assert peer.get(resource).ok


def test_a_missing_resource_and_a_bad_name_look_alike(peer):
    peer.auth()
    peer.attest()
    missing, bad = error_of(peer.get("a/b/c")), error_of(peer.get("a/b/..hidden"))
    assert missing == bad == (401, "PluginInternalError", "Plugin internal error")


def test_an_unknown_plugin_is_404(peer):
    answer = peer.http.get(f"{peer.base}/toaster/a/b/c", timeout=10)
    assert error_of(answer) == (404, "PluginNotFound", "Plugin toaster not found")


def test_a_path_outside_the_protocol_is_404(peer):
    assert error_of(peer.http.get(f"{peer.room.url}/nothing", timeout=10))[:2] == (404, "InvalidRequestPath")


def test_a_body_of_more_than_two_megabytes_is_refused(peer):
    peer.auth()
    large = peer.attestation()
    large["tee-evidence"]["additional_evidence"] = "x" * 2_000_000
    assert peer.attest(large).status_code == 413


def test_a_statement_lands_in_the_token(peer):
    peer.auth({"strongroom": {"version": 1}})
    entry = KeeperStatement(b"k" * 16, configuration=b"c" * 32).serialise()
    token = peer.attest(peer.attestation(additional=json.dumps({"strongroom": entry}))).json()["token"]
    claims = json.loads(unb64url(token.split(".")[1]))
    assert claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"]["strongroom"] == entry


def test_a_statement_of_another_form_refuses_the_whole(peer):
    peer.auth({"strongroom": {"version": 1}})
    entry = {"version": 1, "keeper": "short"}
    assert not peer.attest(peer.attestation(additional=json.dumps({"strongroom": entry}))).ok


def test_sample_evidence_is_refused(peer):
    peer.auth(tee="sample")
    assert error_of(peer.attest())[1] == "AttestationError"


def test_health_is_an_empty_200_and_metrics_name_nobody(peer, resource):
    health = peer.http.get(f"{peer.room.url}/healthz", timeout=10)
    assert (health.status_code, health.content) == (200, b"")
    text = peer.http.get(f"{peer.room.url}/metrics", timeout=10).text
    assert 'strongroom_broker_decisions_total{kind="release",outcome="granted"}' in text
    assert str(resource) not in text and "acme" not in text
    assert "\nstrongroom_broker_unable 0\n" in text and "\nstrongroom_broker_leases " in text
    # Labels are words of ours: nothing that a peer, an archive or a key could be told by.
    assert set(re.findall(r'(\w+)="([^"]*)"', text)) <= {
        (name, word) for name, words in LABELS.items() for word in words
    }


def test_a_policy_that_demands_a_gpu_refuses_an_empty_list_of_devices(tmp_path):
    with broker_room(tmp_path, appraisal=APPRAISAL + "\n[devices]\ngpu = 1\n") as room:
        peer = Peer(room)
        peer.auth()
        assert not peer.attest().ok


def test_a_certificate_that_ends_soon_is_warned_of(tmp_path, caplog, monkeypatch):
    from datetime import timedelta

    from strongroom.broker import certificate

    with broker_room(tmp_path / "long", hosts=("127.0.0.1",)):
        assert "ends in" not in caplog.text
    monkeypatch.setattr(certificate, "LIFE", timedelta(days=20))
    with broker_room(tmp_path / "short", hosts=("127.0.0.1",)):
        assert "tls.crt ends in 19 days" in caplog.text
