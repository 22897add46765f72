"""Whoever wants a key that is not theirs: replays, borrowed evidence and tokens, crooked names, floods, slow bodies."""

from __future__ import annotations

import base64
import json
import socket
import time

import pytest
from broker.broker_in_a_room import MEASUREMENT, Peer, broker_room, error_of
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from strongroom.broker import heads
from strongroom.broker import http as broker_http
from strongroom.broker.admin import AdminKey, key_id_of, register
from strongroom.broker.jwe import Jwe, TeeKeyPair
from strongroom.broker.pace import Pace
from strongroom.broker.tokens import TokenSigner
from strongroom.encoding import b64url, unb64url
from strongroom.errors import MalformedInput


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    with broker_room(tmp_path_factory.mktemp("attacked")) as room:
        room.name, room.archive, room.key = room.register(1)
        yield room


@pytest.fixture
def peer(room):
    return Peer(room)


@pytest.fixture
def victim(room):
    """A keeper that attested: its session, its evidence and its token are what an attacker saw."""
    victim = Peer(room)
    victim.auth()
    victim.body = victim.attestation()
    victim.token = victim.attest(victim.body).json()["token"]
    return victim


# -- borrowed evidence --------------------------------------------------------------------


def test_evidence_of_another_session_does_not_pass(peer, victim):
    peer.auth()
    assert error_of(peer.attest(victim.body))[1] == "AttestationError"


def test_evidence_over_another_nonce_does_not_pass_under_the_right_one(peer, victim):
    peer.auth()
    borrowed = json.loads(json.dumps(victim.body))
    borrowed["runtime-data"]["nonce"] = peer.challenge["nonce"]
    assert error_of(peer.attest(borrowed))[1] == "AttestationError"


def test_an_attackers_key_under_a_victims_evidence_does_not_pass(peer):
    peer.auth()
    honest = peer.attestation()
    honest["runtime-data"]["tee-pubkey"] = TeeKeyPair.generate().public.serialise()
    assert error_of(peer.attest(honest))[1] == "AttestationError"


def test_additional_evidence_cannot_be_stripped_or_added(peer):
    peer.auth()
    statement = json.dumps({"strongroom": {"version": 1, "keeper": "00" * 16}})
    stripped = peer.attestation(additional=statement)
    stripped["tee-evidence"]["additional_evidence"] = ""
    assert error_of(peer.attest(stripped))[1] == "AttestationError"
    added = peer.attestation()
    added["tee-evidence"]["additional_evidence"] = statement
    assert error_of(peer.attest(added))[1] == "AttestationError"


def test_a_nonce_is_compared_as_it_stands(peer):
    peer.auth()
    nonce = peer.challenge["nonce"]
    for other in (nonce.rstrip("="), nonce + " ", base64.b64encode(base64.b64decode(nonce) + b"").decode() + "\n"):
        assert error_of(peer.attest(peer.attestation(nonce=other)))[1] == "AttestationError"


def test_a_new_key_cannot_be_slipped_into_an_attested_session(room, victim):
    """The old token comes back, and what it fetches is for the old key alone."""
    thief = TeeKeyPair.generate()
    again = victim.attestation(keys=thief)
    assert victim.attest(again).json()["token"] == victim.token
    answer = victim.get(room.name)
    with pytest.raises(MalformedInput):
        thief.open(Jwe.parse(answer.content))


# -- sessions and tokens ---------------------------------------------------------------------


def test_a_stolen_cookie_fetches_only_what_the_thief_cannot_open(room, victim, peer):
    peer.http.cookies.set("kbs-session-id", victim.http.cookies["kbs-session-id"])
    answer = peer.get(room.name)
    with pytest.raises(MalformedInput):
        peer.keys.open(Jwe.parse(answer.content))


def test_a_session_id_that_a_peer_proposes_is_not_taken(peer):
    proposed = "ab" * 16
    peer.http.cookies.set("kbs-session-id", proposed)
    peer.auth()
    assert proposed not in peer.http.cookies.values() or len(peer.http.cookies) > 1
    assert peer.room.broker.sessions.find(proposed) is None


def unsigned(token, **header):
    fields = json.loads(unb64url(token.split(".")[0])) | header
    return ".".join([b64url(json.dumps(fields).encode()), token.split(".")[1], ""])


def forged_tokens(token):
    claims = json.loads(unb64url(token.split(".")[1]))
    stranger = TokenSigner(ec.generate_private_key(ec.SECP256R1()))
    yield "another broker's", stranger.sign(claims, now=time.time())
    yield "unsigned", unsigned(token, alg="none")
    yield "hmac with the public key", unsigned(token, alg="HS256")
    yield "no signature", token.rsplit(".", 1)[0] + "."
    later = json.loads(json.dumps(claims)) | {"exp": claims["exp"] + 10**6}
    yield "longer life", ".".join([token.split(".")[0], b64url(json.dumps(later).encode()), token.split(".")[2]])
    yield "noise", "a.b.c"
    yield "empty", "."
    yield "long", "x" * 70000


@pytest.mark.parametrize("number", range(8))
def test_a_forged_token_is_refused(room, victim, number):
    name, token = list(forged_tokens(victim.token))[number]
    stranger = Peer(room)
    answer = stranger.get(room.name, headers={"Authorization": f"Bearer {token}"})
    assert error_of(answer)[1] in {"TokenVerifierError", "TokenNotFound"}, name


def test_a_rightly_signed_token_without_a_session_is_refused(room, peer, victim):
    claims = json.loads(unb64url(victim.token.split(".")[1]))
    signed = room.broker.signer.sign(claims, now=room.broker.clock())
    assert signed != victim.token
    assert error_of(peer.get(room.name, headers={"Authorization": f"Bearer {signed}"}))[1] == "TokenVerifierError"


# -- administrators -----------------------------------------------------------------------------


FOREIGN_POLICY = "package policy\n\nallow := true\n"
REVOCATION = {"kind": "lineage", "value": "acme/digits", "reason": "none of your business"}


def admin_call(room, authorization, path="strongroom/admin/status", method="GET", body=None):
    import requests

    headers = {"Authorization": authorization} if authorization else {}
    return requests.request(method, f"{room.url}/kbs/v0/{path}", headers=headers, json=body, timeout=10)


def test_only_a_fresh_token_of_a_known_key_for_this_broker_administrates(room):
    good = AdminKey.load(room.folder / "admin.key")
    assert admin_call(room, f"Bearer {good.token()}").status_code == 200
    stranger = AdminKey(Ed25519PrivateKey.generate(), good.broker)
    header, claims, signature = good.token().split(".")
    other_role = b64url(json.dumps(json.loads(unb64url(claims)) | {"role": "auditor"}).encode())
    forged_header = b64url(json.dumps({"alg": "none", "kid": key_id_of(good.private.public_key())}).encode())
    for token in (
        stranger.token(),
        AdminKey(good.private, "another broker").token(),
        AdminKey(good.private, "").token(),
        good.token("auditor"),
        good.token(now=time.time() - 3600),
        good.token(now=time.time() + 3600),
        f"{header}.{other_role}.{signature}",
        f"{forged_header}.{claims}.",
        "", "a.b.c", "....", "x" * 9000,
    ):  # fmt: skip
        assert error_of(admin_call(room, f"Bearer {token}"))[1] == "AdminAuthAccess"
    assert error_of(admin_call(room, None))[1] == "AdminAuthAccess"
    assert error_of(admin_call(room, "Basic YTpi"))[1] == "AdminAuthAccess"


def test_an_attestation_token_is_no_administrators_token(room, victim):
    assert error_of(admin_call(room, f"Bearer {victim.token}"))[1] == "AdminAuthAccess"


@pytest.mark.parametrize(
    ("role", "repository", "method", "path", "body", "allowed"),
    [
        ("owner", "acme", "DELETE", "resource/acme/x/y", None, True),
        ("owner", "acme", "DELETE", "resource/other/x/y", None, False),
        ("owner", "acme", "GET", "strongroom/admin/audit/checkpoint", None, False),
        ("owner", "acme", "POST", "resource-policy", {"policy": b64url(FOREIGN_POLICY.encode())}, False),
        ("auditor", "", "GET", "strongroom/admin/audit/checkpoint", None, True),
        ("auditor", "", "DELETE", "resource/acme/x/y", None, False),
        ("auditor", "", "GET", "strongroom/admin/leases", None, True),
        ("auditor", "", "GET", "resource-policy", None, False),
        ("auditor", "", "GET", "attestation-policy", None, False),
        ("auditor", "", "DELETE", "strongroom/admin/leases/00", None, False),
        ("admin", "", "DELETE", "strongroom/admin/leases/00", None, True),
        ("auditor", "", "POST", "strongroom/admin/revocations", REVOCATION, False),
    ],
)
def test_a_role_may_do_its_own_work_and_no_other(room, role, repository, method, path, body, allowed):
    key = AdminKey(Ed25519PrivateKey.generate(), room.broker.id)
    register(room.broker.store, key.private.public_key(), role, repository)
    answer = admin_call(room, f"Bearer {key.token(role)}", path, method, body)
    refused = answer.status_code != 200 and error_of(answer)[1] == "AdminAuthAccess"
    assert refused != allowed
    assert room.broker.store.policy("release") != FOREIGN_POLICY and not room.broker.store.revocations()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("resource-policy", {"policy": b64url(FOREIGN_POLICY.encode())}),
        ("strongroom/admin/revocations", REVOCATION),
    ],
)
def test_what_a_role_was_refused_is_done_for_the_administrator(tmp_path, path, body):
    """So it was the role that was refused above, and not the body."""
    with broker_room(tmp_path) as room:
        good = AdminKey.load(room.folder / "admin.key")
        assert admin_call(room, f"Bearer {good.token()}", path, "POST", body).status_code == 200
        assert room.broker.store.policy("release") == FOREIGN_POLICY or room.broker.store.revocations()


@pytest.mark.parametrize("first", ["²", "٣", "-1", "", "1" * 16])
def test_a_first_entry_that_is_no_number_is_refused_in_order(room, first):
    key = AdminKey.load(room.folder / "admin.key")
    answer = admin_call(room, f"Bearer {key.token()}", f"strongroom/admin/audit/entries?first={first}")
    assert error_of(answer)[0] == 401


def test_an_owner_sees_only_its_own_repository(room):
    key = AdminKey(Ed25519PrivateKey.generate(), room.broker.id)
    register(room.broker.store, key.private.public_key(), "owner", "other")
    assert admin_call(room, f"Bearer {key.token('owner')}", "strongroom/admin/resources").json() == []


# -- names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "../../resource-policy", "acme/../acme/digits", "acme%2fdigits%2fx", "acme/digits/..%2f..%2fadmin",
        "acme/digits/%00", "acme/digits/x%0d%0aSet-Cookie:a=b", "acme/digits/" + "a" * 5000, "%ff/%fe/%fd", "a/b/c/d/e",
        "acme/digits/'; DROP TABLE resources; --", "./././", "acme//digits",
    ],
)  # fmt: skip
def test_a_crooked_name_gets_nothing_and_breaks_nothing(room, victim, path):
    answer = victim.http.get(f"{victim.base}/resource/{path}", timeout=10, allow_redirects=False)
    assert answer.status_code in (400, 401, 404)
    assert "set-cookie" not in answer.headers
    assert room.broker.store.resource(room.name) is not None


# -- floods, slowness, size ----------------------------------------------------------------------------


def test_a_peer_that_asks_too_often_is_slowed_and_others_are_not(tmp_path):
    now = [0.0]
    with broker_room(tmp_path, pace=Pace(per_second=1, burst=5, steady=lambda: now[0])) as room:
        peer = Peer(room)
        assert [peer.auth().status_code for _ in range(7)] == [200] * 5 + [429] * 2
        now[0] += 1
        assert [peer.auth().status_code for _ in range(2)] == [200, 429]
        assert peer.http.get(f"{room.url}/healthz", timeout=10).status_code == 200


def test_every_path_that_costs_something_has_a_pace(tmp_path):
    """Also a resource behind a stolen cookie, and what only administrators are answered."""
    now = [0.0]
    with broker_room(tmp_path, pace=Pace(per_second=1, burst=8, steady=lambda: now[0])) as room:
        peer = Peer(room)
        assert [peer.auth().status_code for _ in range(8)] == [200] * 8
        for path in ("resource/a/b/c", "strongroom/epoch/a/b/c", "resource-policy", "reference-value/x", "toaster/x"):
            answer = peer.http.get(f"{peer.base}/{path}", timeout=10)
            assert (answer.status_code, answer.headers["retry-after"], answer.content) == (429, "1", b""), path
        now[0] += 1
        assert peer.get("a/b/c").status_code == 401


def test_a_peer_that_opens_every_connection_leaves_room_for_others(room, monkeypatch):
    monkeypatch.setattr(heads, "CONNECTIONS_PER_PEER", 20)
    host, port = room.url.removeprefix("http://").split(":")
    held = [socket.create_connection((host, int(port)), timeout=10) for _ in range(40)]
    try:
        time.sleep(0.3)
        closed = 0
        for link in held:
            link.settimeout(0.05)
            try:
                closed += link.recv(1) == b""
            except ConnectionError:
                closed += 1
            except TimeoutError:
                pass
        assert closed >= 20, "one address holds them all"
        with socket.socket() as other:  # of another address of this machine
            other.bind(("127.0.0.2", 0))
            other.settimeout(10)
            other.connect((host, int(port)))
            other.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert other.recv(64).startswith(b"HTTP/1.1 200")
    finally:
        for link in held:
            link.close()


def test_a_flood_of_handshakes_does_not_push_out_an_attested_one(room, victim, monkeypatch):
    from strongroom.broker import sessions

    monkeypatch.setattr(sessions, "SESSION_LIMIT", 50)
    for _ in range(120):
        room.broker.handshakes.auth(b'{"version":"0.4.0","tee":"snp","extra-params":""}')
    assert len(room.broker.sessions) <= 51
    assert victim.get(room.name).ok


def test_a_session_keeps_nothing_of_what_a_stranger_sent_to_open_it(peer):
    assert peer.auth(extra={"strongroom": {"version": 1}, "padding": [[]] * 1000}).ok
    session = peer.room.broker.sessions.find(peer.http.cookies["kbs-session-id"])
    assert session.request.extra_params == ""


def test_extra_params_of_megabytes_open_no_session(peer):
    before = len(peer.room.broker.sessions)
    status, kind, detail = error_of(peer.auth(extra=[[]] * 100_000))
    assert (status, kind) == (401, "AttestationError") and "the limit is 65536" in detail
    assert len(peer.room.broker.sessions) == before


def raw(room, octets, *, wait=3.0):
    host, port = room.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=wait) as link:
        link.sendall(octets)
        received = b""
        try:
            while part := link.recv(65536):
                received += part
        except TimeoutError:
            return received, False
    return received, True


def test_a_body_that_never_comes_ends_with_408(room, monkeypatch):
    monkeypatch.setattr(broker_http, "BODY_SECONDS", 0.5)
    head = b"POST /kbs/v0/auth HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nConnection: close\r\n\r\n{"
    assert raw(room, head)[0].startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("first", [b"", b"GET / HT", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /hea"])
def test_a_head_that_never_ends_is_cut_off(room, monkeypatch, first):
    monkeypatch.setattr(heads, "HEAD_SECONDS", 0.5)
    begun = time.monotonic()
    assert raw(room, first, wait=8.0)[1], "the broker still waits"
    assert time.monotonic() - begun < 5


def test_a_body_without_end_is_cut_at_the_limit(room):
    head = b"POST /kbs/v0/auth HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    host, port = room.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as link:
        link.sendall(head)
        try:
            for _ in range(60):
                link.sendall(chunk)
        except OSError:
            pass
        try:
            answer = link.recv(4096)
        except OSError:
            answer = b""  # the broker closed while we were still sending: also an end
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("length", [b"-1", b"99999999999999999999", b"abc", b"2000001"])
def test_a_crooked_content_length_is_refused(room, length):
    head = b"POST /kbs/v0/auth HTTP/1.1\r\nHost: x\r\nContent-Length: " + length + b"\r\nConnection: close\r\n\r\n"
    status = raw(room, head)[0].split(b" ")[1:2]
    assert status in ([b"400"], [b"413"])


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"{}", b"\xff\xfe", b'{"version":"0.4.0"}',
        b'{"version":0.4,"tee":"snp","extra-params":""}',
        b'{"version":"0.4.0","version":"0.4.0","tee":"snp","extra-params":""}', b"[" * 100_000,
        b'{"version":"0.4.0","tee":"snp","extra-params":NaN}', b'{"version":"0.4.0","tee":"' + b"a" * 5000 + b'"}',
        b'{"version":"0.4.0","tee":"snp","extra-params":' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"version":"0.4.0","tee":"snp","extra-params":1e999}',
        '{"version":"0.4.0","tee":"\ud83d"}'.encode("utf-8", "surrogatepass"),
    ],
)  # fmt: skip
def test_nonsense_gets_a_refusal_of_the_protocol_and_no_500(peer, body):
    for step in ("auth", "attest"):
        answer = peer.http.post(f"{peer.base}/{step}", data=body, timeout=20)
        assert answer.status_code in (200, 401) and b"Traceback" not in answer.content
        if answer.status_code == 401:
            assert error_of(answer)[1] == "AttestationError"


def test_evidence_with_numbers_that_no_document_holds_is_refused_and_not_a_crash(peer):
    peer.auth()
    body = peer.attestation()
    body["tee-evidence"]["primary_evidence"]["asserted"] = {"x": 1.5, "y": 10**400}
    assert error_of(peer.attest(body))[1] == "AttestationError"


@pytest.mark.parametrize("member", ["additional_evidence", "primary_evidence", "init-data"])
def test_text_that_no_encoding_holds_is_refused_and_recorded_and_not_a_crash(room, peer, caplog, member):
    peer.auth()
    body = peer.attestation()
    if member == "init-data":
        body["init-data"] = {"format": "toml", "body": "\ud800"}
    elif member == "primary_evidence":
        body["tee-evidence"][member] = {"version": 1, "measurement": "\ud800"}
    else:
        body["tee-evidence"][member] = json.dumps({"x": 1}).replace("x", "\ud800")
    answer = peer.http.post(f"{peer.base}/attest", data=json.dumps(body).encode("ascii"), timeout=10)
    assert error_of(answer)[1] == "AttestationError"
    assert "failed unexpectedly" not in caplog.text


def test_a_refusal_takes_little_room_in_the_log_whatever_was_sent(room, peer):
    peer.auth()
    body = peer.attestation()
    body["tee-evidence"]["primary_evidence"] = {"x" * 1000 + str(number): 1 for number in range(500)}
    before = room.broker.audit.size
    assert not peer.attest(body).ok
    [entry] = room.broker.audit.entries(before)
    assert len(entry) < 8192


# -- what leaks -------------------------------------------------------------------------------------------


def test_no_answer_and_no_log_shows_a_key_or_a_check(room, peer, caplog):
    caplog.set_level("DEBUG")
    peer.auth()
    refused = Peer(room, measurement=bytes(32))
    refused.auth()
    answer = refused.attest()
    assert MEASUREMENT.hex() not in answer.text and "measurement" not in answer.text
    peer.attest()
    peer.get(room.name)
    secret = room.key.reveal()
    everything = caplog.text + json.dumps([each.decode() for each in room.broker.audit.entries()])
    for spelled in (secret.hex(), b64url(secret), base64.b64encode(secret).decode()):
        assert spelled not in everything
    assert peer.http.cookies["kbs-session-id"] not in everything


def test_no_key_lies_on_the_disk_in_the_clear(room):
    secret = room.key.reveal()
    room.broker.store.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    for path in room.folder.rglob("*"):
        if path.is_file():
            octets = path.read_bytes()
            assert secret not in octets and b64url(secret).encode() not in octets, path
