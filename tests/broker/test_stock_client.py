"""A stock client at our broker: another implementation of the protocol, with SNP evidence on a doubled chip."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from broker.broker_in_a_room import broker_room
from broker.stock_client import StockClient
from broker.test_composite import ARCHIVE, KEY, NAME, Cpu
from cryptography.exceptions import InvalidTag
from doubles.amd_keys import amd_keys
from strongroom.broker.document import ModelKeyDocument
from strongroom.broker.jwe import Jwe, TeeKeyPair, seal_to
from strongroom.broker.protocol import Resource
from strongroom.encoding import b64url, unb64url
from strongroom.evidence.snp import SnpVerifier
from strongroom.evidence.types import Endorsements
from strongroom.hookspecs import VerifierOffer
from strongroom.plugins import Plugins, Verifiers

APPRAISAL = f'name = "snp guests"\n[snp]\nmeasurements = ["{"22" * 48}"]\n'


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    plugins = Plugins.load()
    snp = SnpVerifier(issuers=amd_keys("Milan").issuers)
    plugins._verifiers = Verifiers({"snp": VerifierOffer("snp", lambda: snp)})
    lists = Endorsements({"crl": amd_keys("Milan").ark.crl(at=datetime.now(UTC))})
    with broker_room(
        tmp_path_factory.mktemp("stock"), appraisal=APPRAISAL, rego="measured", plugins=plugins,
        endorsements=lambda evidence, policy: lists,
    ) as room:  # fmt: skip
        document = ModelKeyDocument(ARCHIVE, KEY, version=1, lease_s=900)
        room.broker.store.put_resource(NAME, document.serialise(), at=0, archive=str(ARCHIVE), version=1)
        room.broker.store.put_resource(Resource("acme", "secret", "1"), b"any bytes \x00\xff", at=0)
        yield room


@pytest.fixture(params=["EC", "RSA"])
def client(room, request):
    cpu = Cpu()
    return StockClient(room.url, "snp", lambda digest: dict(cpu.evidence(digest).body), request.param)


def test_a_stock_client_gets_a_model_key(client):
    client.attest()
    document = json.loads(client.get(NAME))
    assert document["archive"] == str(ARCHIVE) and document["lease_s"] == 900


def test_a_stock_client_gets_any_other_resource_as_it_was_stored(client):
    client.attest()
    assert client.get("acme/secret/1") == b"any bytes \x00\xff"


def test_a_token_alone_is_a_passport_for_the_attested_key(room, client):
    token = client.attest()
    client.http.cookies.clear()
    assert client.get("acme/secret/1", token) == b"any bytes \x00\xff"


def test_a_stock_client_is_told_nothing_of_ours(room, client):
    asked = {"version": "0.4.0", "tee": "snp", "extra-params": {"supported-hash-algorithms": ["sha384"]}}
    assert client.http.post(f"{client.base}/auth", json=asked, timeout=60).json()["extra-params"] == ""


@pytest.mark.parametrize(
    "spell",
    [
        lambda alg, enc, epk: json.dumps({"enc": enc, "alg": alg, "epk": epk}, separators=(",", ":")),
        lambda alg, enc, epk: json.dumps({"alg": alg, "epk": epk, "enc": enc}, separators=(",", ":")),
        lambda alg, enc, epk: json.dumps({"alg": alg, "enc": enc, "epk": epk}),
    ],
    ids=["enc first", "epk before enc", "spaces"],
)
def test_the_double_really_fails_on_another_spelling_and_our_own_client_does_not(room, spell):
    """Else the tests above would show nothing about the header's order."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    client = StockClient(room.url, "snp", dict)
    ours = TeeKeyPair(client.key)
    sealed = seal_to(ours.public, b"plaintext")
    assert client.open(sealed.serialise()) == b"plaintext"
    header = json.loads(unb64url(sealed.protected))
    protected = b64url(spell(header["alg"], header["enc"], header["epk"]).encode())
    content_key = client.unwrapped(header, sealed.encrypted_key)
    again = AESGCM(content_key).encrypt(sealed.iv, b"plaintext", protected.encode())
    other = Jwe(protected, sealed.encrypted_key, sealed.iv, again[:-16], again[-16:])
    assert ours.open(other) == b"plaintext"
    with pytest.raises(InvalidTag):
        client.open(other.serialise())
