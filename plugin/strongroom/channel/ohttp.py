"""Oblivious HTTP (RFC 9458): heads, single-shot requests and responses.

The client calls `encapsulate` with a verified key configuration and keeps the `ResponseOpener`.
The server parses a `RequestHead`, gets the request's HPKE context from whoever holds the private
keys (`keyset`), opens with `open_request` and answers with `seal_response`. The chunked form,
which shares all of this but the messages themselves, stands in `chunked`.

Whatever does not open raises `EncapsulationInvalid`; what names a key or pair that is not on
offer, `KeyUnknown`.
"""

from __future__ import annotations

import functools
import secrets
import struct
from dataclasses import dataclass
from enum import Enum

from cryptography.exceptions import InvalidTag

from strongroom.channel.hpke import NONCE_SIZE, TAG_SIZE, RecipientContext, SenderContext, Suite, suite_of
from strongroom.channel.kem import KEMS, KemPublicKey, expand, extract
from strongroom.channel.keylist import KeyConfig
from strongroom.errors import EncapsulationInvalid, KeyUnknown

HEAD_SIZE = 7
_HEAD = struct.Struct(">BHHH")


class Form(Enum):
    """Single-shot or chunked: the labels that separate the two, and their media types."""

    SINGLE = (b"message/bhttp request", b"message/bhttp response", "message/ohttp-req", "message/ohttp-res")
    CHUNKED = (
        b"message/bhttp chunked request",
        b"message/bhttp chunked response",
        "message/ohttp-chunked-req",
        "message/ohttp-chunked-res",
    )

    @property
    def request_label(self) -> bytes:
        """Separates the request's HPKE info."""
        return self.value[0]

    @property
    def response_label(self) -> bytes:
        """The exporter's label."""
        return self.value[1]

    @property
    def request_type(self) -> str:
        """The media type of an encapsulated request."""
        return self.value[2]

    @property
    def response_type(self) -> str:
        """The media type of an encapsulated response."""
        return self.value[3]

    @classmethod
    def of_request(cls, media_type: str) -> Form | None:
        """The form of a request's `Content-Type`, compared without parameters and case; None if it is neither."""
        bare = media_type.partition(";")[0].strip().lower()
        return next((form for form in cls if form.request_type == bare), None)

    @classmethod
    def of_response(cls, media_type: str) -> Form | None:
        """The form of a response's `Content-Type`; None if it is neither."""
        bare = media_type.partition(";")[0].strip().lower()
        return next((form for form in cls if form.response_type == bare), None)


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The 7 bytes in front of an encapsulated request: key_id (1), kem_id, kdf_id, aead_id (2 each)."""

    key_id: int
    kem_id: int
    kdf_id: int
    aead_id: int

    @classmethod
    def parse(cls, body: bytes | bytearray | memoryview) -> tuple[RequestHead, bytes, memoryview]:
        """(head, enc of Nenc bytes, a view of the rest of `body`), without a copy of the rest.

        Raises `EncapsulationInvalid` if it is cut short, `KeyUnknown` for a KEM this package has not.
        """
        if len(body) < HEAD_SIZE:
            raise EncapsulationInvalid(f"an encapsulated request of {len(body)} bytes")
        view = memoryview(body)
        head = cls(*_HEAD.unpack_from(view))
        kem = KEMS.get(head.kem_id)
        if kem is None:
            raise KeyUnknown(f"KEM {head.kem_id:#06x} is not known")
        if len(view) < HEAD_SIZE + kem.enc_size:
            raise EncapsulationInvalid(f"an encapsulated request of {len(body)} bytes")
        end = HEAD_SIZE + kem.enc_size
        return head, bytes(view[HEAD_SIZE:end]), view[end:]

    def serialise(self) -> bytes:
        """The 7 bytes."""
        return _HEAD.pack(self.key_id, self.kem_id, self.kdf_id, self.aead_id)

    @property
    def suite(self) -> Suite:
        """The HPKE suite; raises `KeyUnknown`."""
        return suite_of(self.kem_id, self.kdf_id, self.aead_id)

    def info(self, form: Form) -> bytes:
        """HPKE's info (RFC 9458 section 4.3)."""
        return form.request_label + b"\x00" + self.serialise()


@functools.lru_cache(maxsize=64)
def _public_key(kem_id: int, octets: bytes) -> KemPublicKey:
    """Parsed once for many requests: an ML-KEM public key costs half an encapsulation to parse."""
    return KEMS[kem_id].public_key(octets)


def begin(config: KeyConfig, pair: tuple[int, int], form: Form, *, ephemeral: bytes | None = None) -> Sent:
    """Start a request to the key of `config` with one of its (kdf_id, aead_id) pairs: a fresh HPKE context.

    Raises `KeyUnknown` if the pair is not on offer, `EncapsulationInvalid` if the key cannot be used.
    """
    if pair not in config.pairs:
        raise KeyUnknown(f"key {config.key_id} does not offer KDF {pair[0]:#06x} with AEAD {pair[1]:#06x}")
    head = RequestHead(config.key_id, config.kem_id, *pair)
    public_key = _public_key(config.kem_id, config.public_key)
    enc, context = SenderContext.setup(head.suite, public_key, head.info(form), ephemeral=ephemeral)
    return Sent(head, enc, context)


@dataclass(frozen=True, slots=True)
class Sent:
    """The client's side of one request: its head, enc, and HPKE context."""

    head: RequestHead
    enc: bytes
    context: SenderContext


def encapsulate(
    config: KeyConfig, pair: tuple[int, int], plaintext: bytes, *, ephemeral: bytes | None = None
) -> tuple[bytearray, ResponseOpener]:
    """One whole `message/ohttp-req` of a binary request, and what opens the response to it.

    A request has its own HPKE context and is sent once; whoever tries again encapsulates again.
    `ephemeral` is for test vectors. Raises as `begin` does.
    """
    sent = begin(config, pair, Form.SINGLE, ephemeral=ephemeral)
    front = sent.head.serialise() + sent.enc
    message = bytearray(len(front) + len(plaintext) + TAG_SIZE)
    message[: len(front)] = front
    sent.context.seal_into(b"", plaintext, memoryview(message)[len(front) :])
    return message, ResponseOpener(sent.context, sent.enc)


def open_request(context: RecipientContext, ciphertext: bytes | memoryview) -> bytes:
    """The binary request behind enc in a `message/ohttp-req`; raises `EncapsulationInvalid`."""
    return context.open(b"", ciphertext)


@dataclass(frozen=True, slots=True)
class ResponseKey:
    """The AEAD key and nonce of one response (RFC 9458 section 4.4), the same derivation on both sides."""

    suite: Suite
    key: bytes
    nonce: bytes

    def __repr__(self) -> str:
        return "ResponseKey(...)"

    @staticmethod
    def nonce_size(suite: Suite) -> int:
        """max(Nn, Nk): the length of a response nonce and of the exported secret, in bytes."""
        return max(NONCE_SIZE, suite.key_size)

    @classmethod
    def derive(
        cls, context: SenderContext | RecipientContext, form: Form, enc: bytes, response_nonce: bytes
    ) -> ResponseKey:
        """Extract and Expand in their plain forms, salted with enc || response_nonce."""
        suite = context.suite
        secret = context.export(form.response_label, cls.nonce_size(suite))
        prk = extract(suite.hash_name, enc + response_nonce, secret)
        return cls(
            suite,
            key=expand(suite.hash_name, prk, b"key", suite.key_size),
            nonce=expand(suite.hash_name, prk, b"nonce", NONCE_SIZE),
        )


def response_nonce(suite: Suite) -> bytes:
    """A fresh response nonce; it keeps the responses to a replayed request apart."""
    return secrets.token_bytes(ResponseKey.nonce_size(suite))


def seal_response(context: RecipientContext, enc: bytes, plaintext: bytes, *, nonce: bytes | None = None) -> bytearray:
    """One whole `message/ohttp-res` of a binary response. `nonce` is for test vectors."""
    nonce = response_nonce(context.suite) if nonce is None else nonce
    derived = ResponseKey.derive(context, Form.SINGLE, enc, nonce)
    message = bytearray(len(nonce) + len(plaintext) + TAG_SIZE)
    message[: len(nonce)] = nonce
    aead = context.suite.aead(derived.key)
    aead.encrypt_into(derived.nonce, plaintext, b"", memoryview(message)[len(nonce) :])
    return message


class ResponseOpener:
    """What a client keeps of its request: the one thing that opens the response to it."""

    __slots__ = ("_context", "_enc")

    def __init__(self, context: SenderContext, enc: bytes) -> None:
        self._context = context
        self._enc = enc

    def open(self, message: bytes | bytearray | memoryview) -> bytes:
        """The binary response in a `message/ohttp-res`; raises `EncapsulationInvalid`."""
        size = ResponseKey.nonce_size(self._context.suite)
        view = memoryview(message)
        derived = ResponseKey.derive(self._context, Form.SINGLE, self._enc, bytes(view[:size]))
        try:
            return self._context.suite.aead(derived.key).decrypt(derived.nonce, view[size:], b"")
        except (InvalidTag, ValueError) as error:
            raise EncapsulationInvalid("an encapsulated response does not open") from error
