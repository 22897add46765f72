"""Chunked Oblivious HTTP (draft-ietf-ohai-chunked-ohttp-08): the same in chunks, for streams.

Sealers give the bytes to send; openers take bytes as they come and give what has opened. Until
the final chunk opened, what an opener gave is a prefix only: `finish` is called where the
transport ended, and raises `StreamTruncated` unless a chunk behind a zero length opened with the
AAD ``final``, however cleanly the transport said goodbye.

We send chunks of at most 16384 bytes and an empty final chunk; we accept a final chunk that
carries data, and refuse larger chunks before buffering them.
"""

from __future__ import annotations

from collections.abc import Iterator

from cryptography.exceptions import InvalidTag

from strongroom.channel.hpke import NONCE_SIZE, TAG_SIZE, RecipientContext, SenderContext
from strongroom.channel.keylist import KeyConfig
from strongroom.channel.ohttp import Form, ResponseKey, begin, response_nonce
from strongroom.channel.varint import read_varint, varint
from strongroom.errors import EncapsulationInvalid, StreamTruncated

CHUNK_SIZE = 16 * 1024
"""Plaintext bytes in one chunk: what everybody must accept, and the most we send or take."""

MESSAGE_LIMIT = 1 << 30
"""Plaintext bytes in one message: keeps AES-128-GCM's margin (draft section 7.3)."""

_FINAL = b"final"
Octets = bytes | bytearray | memoryview


class _Chunks:
    """Cuts received bytes into framed chunks; buffers one chunk at most."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._size: int | None = None  # of the chunk being received; 0 is the final one

    def feed(self, octets: Octets) -> Iterator[bytes]:
        """The non-final chunks that are complete, ciphertext with tag; raises `EncapsulationInvalid`."""
        view = memoryview(octets)
        at = 0
        while True:
            if self._size is None:
                while (read := read_varint(self._buffer, 0)) is None:  # at most eight rounds
                    if at == len(view):
                        return
                    self._buffer.append(view[at])
                    at += 1
                self._size = read[0]
                self._buffer.clear()
                if self._size > CHUNK_SIZE + TAG_SIZE:
                    raise EncapsulationInvalid(f"a chunk of {self._size} bytes, the limit is {CHUNK_SIZE + TAG_SIZE}")
            if self._size == 0:
                self._buffer += view[at:]
                if len(self._buffer) > CHUNK_SIZE + TAG_SIZE:
                    raise EncapsulationInvalid(f"a final chunk of more than {CHUNK_SIZE + TAG_SIZE} bytes")
                return
            take = min(self._size - len(self._buffer), len(view) - at)
            self._buffer += view[at : at + take]
            at += take
            if len(self._buffer) < self._size:
                return
            chunk = bytes(self._buffer)
            self._buffer.clear()
            self._size = None
            yield chunk

    def final(self) -> bytes:
        """The final chunk, once the transport ended; raises `StreamTruncated` if there is none."""
        if self._size != 0:
            raise StreamTruncated(
                "the stream ended before its authenticated last chunk",
                hint="what arrived is a true prefix; the connection was cut, or the server failed midway",
            )
        return bytes(self._buffer)


def _pieces(plaintext: Octets) -> Iterator[memoryview]:
    view = memoryview(plaintext)
    for at in range(0, len(view), CHUNK_SIZE):
        yield view[at : at + CHUNK_SIZE]


class _Budget:
    """Counts a message's plaintext against its limit."""

    __slots__ = ("_left", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit

    def spend(self, size: int) -> None:
        """Raises `EncapsulationInvalid` when the message gets longer than its limit."""
        self._left -= size
        if self._left < 0:
            raise EncapsulationInvalid(f"a message of more than {self._limit} bytes")


# -- requests ------------------------------------------------------------------------


class RequestSealer:
    """The client's side of one chunked request: `front`, then `seal` as wanted, then `finish`."""

    def __init__(self, config: KeyConfig, pair: tuple[int, int], *, ephemeral: bytes | None = None) -> None:
        """A fresh HPKE context; raises as `ohttp.begin`. `ephemeral` is for test vectors."""
        sent = begin(config, pair, Form.CHUNKED, ephemeral=ephemeral)
        self._context = sent.context
        self._budget = _Budget(MESSAGE_LIMIT)
        self.enc = sent.enc
        self.front = sent.head.serialise() + sent.enc

    def seal(self, plaintext: Octets) -> bytes:
        """Framed chunks of `plaintext`; nothing for nothing."""
        self._budget.spend(len(plaintext))
        framed = bytearray()
        for piece in _pieces(plaintext):
            framed += varint(len(piece) + TAG_SIZE) + self._context.seal(b"", piece)
        return bytes(framed)

    def finish(self, plaintext: bytes = b"") -> bytes:
        """The final chunk; empty by default, because not everybody opens one that carries data."""
        return b"\x00" + self._context.seal(_FINAL, plaintext)

    def response_opener(self) -> ResponseOpener:
        """What opens the response to this request."""
        return ResponseOpener(self._context, self.enc)


class RequestOpener:
    """The server's side: ciphertext behind enc goes in, plaintext comes out."""

    def __init__(self, context: RecipientContext, *, limit: int = MESSAGE_LIMIT) -> None:
        self._context = context
        self._chunks = _Chunks()
        self._budget = _Budget(limit)

    def feed(self, octets: Octets) -> list[bytes]:
        """The plaintext of every chunk that is complete now; raises `EncapsulationInvalid`."""
        opened = []
        for chunk in self._chunks.feed(octets):
            opened.append(self._context.open(b"", chunk))
            if not opened[-1]:
                raise EncapsulationInvalid("an empty chunk that is not the final one")
            self._budget.spend(len(opened[-1]))
        return opened

    def finish(self) -> bytes:
        """The transport ended: the final chunk's plaintext, usually empty.

        Raises `StreamTruncated` without a final chunk, `EncapsulationInvalid` if it does not open.
        """
        last = self._context.open(_FINAL, self._chunks.final())
        self._budget.spend(len(last))
        return last


def open_request(context: RecipientContext, ciphertext: Octets, *, limit: int = MESSAGE_LIMIT) -> bytes:
    """A whole `message/ohttp-chunked-req` behind its enc, gathered.

    Raises `EncapsulationInvalid` or `StreamTruncated`; on the server both are answered alike.
    """
    opener = RequestOpener(context, limit=limit)
    pieces = opener.feed(ciphertext)
    pieces.append(opener.finish())
    return b"".join(pieces)


# -- responses -----------------------------------------------------------------------


class ResponseSealer:
    """The server's side of one chunked response: `front`, then `seal` as wanted, then `finish`.

    A stream that fails midway is left without `finish`: the client then knows.
    """

    def __init__(self, context: RecipientContext, enc: bytes, *, nonce: bytes | None = None) -> None:
        """`front` is the response nonce and goes first. `nonce` is for test vectors."""
        self.front = response_nonce(context.suite) if nonce is None else nonce
        self._keys = _Sequence(ResponseKey.derive(context, Form.CHUNKED, enc, self.front))
        self._budget = _Budget(MESSAGE_LIMIT)

    def seal(self, plaintext: Octets) -> bytes:
        """Framed chunks of `plaintext`; nothing for nothing."""
        self._budget.spend(len(plaintext))
        if 0 < len(plaintext) <= CHUNK_SIZE:
            return varint(len(plaintext) + TAG_SIZE) + self._keys.seal(b"", plaintext)
        framed = bytearray()
        for piece in _pieces(plaintext):
            framed += varint(len(piece) + TAG_SIZE) + self._keys.seal(b"", piece)
        return bytes(framed)

    def finish(self, plaintext: bytes = b"") -> bytes:
        """The final chunk; empty by default, because not everybody opens one that carries data."""
        return b"\x00" + self._keys.seal(_FINAL, plaintext)


class ResponseOpener:
    """The client's side: bytes of a `message/ohttp-chunked-res` go in, plaintext comes out."""

    def __init__(self, context: SenderContext, enc: bytes, *, limit: int = MESSAGE_LIMIT) -> None:
        self._context = context
        self._enc = enc
        self._nonce = bytearray()
        self._keys: _Sequence | None = None
        self._chunks = _Chunks()
        self._budget = _Budget(limit)

    def feed(self, octets: Octets) -> list[bytes]:
        """The plaintext of every chunk that is complete now; raises `EncapsulationInvalid`."""
        view = memoryview(octets)
        if self._keys is None:
            take = ResponseKey.nonce_size(self._context.suite) - len(self._nonce)
            self._nonce += view[:take]
            view = view[take:]
            if len(self._nonce) < ResponseKey.nonce_size(self._context.suite):
                return []
            self._keys = _Sequence(ResponseKey.derive(self._context, Form.CHUNKED, self._enc, bytes(self._nonce)))
        opened = []
        for chunk in self._chunks.feed(view):
            opened.append(self._keys.open(b"", chunk))
            if not opened[-1]:
                raise EncapsulationInvalid("an empty chunk that is not the final one")
            self._budget.spend(len(opened[-1]))
        return opened

    def finish(self) -> bytes:
        """The transport ended: the final chunk's plaintext, usually empty.

        Raises `StreamTruncated` if there is no final chunk or it does not open: it may have been
        cut inside, which nobody can tell from tampering.
        """
        final = self._chunks.final()
        if self._keys is None:
            raise StreamTruncated("the stream ended inside its response nonce")
        try:
            last = self._keys.open(_FINAL, final)
        except EncapsulationInvalid as error:
            raise StreamTruncated("the stream ended inside its last chunk, or somebody changed it") from error
        self._budget.spend(len(last))
        return last


class _Sequence:
    """An AEAD with the response's counter under its nonce."""

    __slots__ = ("_aead", "_counter", "_nonce")

    def __init__(self, derived: ResponseKey) -> None:
        self._aead = derived.suite.aead(derived.key)
        self._nonce = int.from_bytes(derived.nonce, "big")
        self._counter = 0

    def _next(self) -> bytes:
        return (self._nonce ^ self._counter).to_bytes(NONCE_SIZE, "big")

    def seal(self, aad: bytes, plaintext: Octets) -> bytes:
        sealed = self._aead.encrypt(self._next(), plaintext, aad)
        self._counter += 1
        return sealed

    def open(self, aad: bytes, ciphertext: bytes) -> bytes:
        try:
            opened = self._aead.decrypt(self._next(), ciphertext, aad)
        except (InvalidTag, ValueError) as error:
            raise EncapsulationInvalid("a chunk does not open") from error
        self._counter += 1
        return opened
