"""What a host or a client can do to the channel's bytes, tried: nothing passes, nothing falls over, nothing is logged.

The server is the real service of a worker over the real request keys of a keeper; the client's side is the
real opener. Each refusal has the status of docs/protocol.md section 6.
"""

from __future__ import annotations

import logging
import random
import tracemalloc
from dataclasses import replace

import pytest
from doubles.direct_link import Served
from strongroom.channel import chunked, ohttp
from strongroom.channel.bhttp import Limits, MessageReader, Request, Response
from strongroom.channel.hpke import RecipientContext
from strongroom.channel.kem import KEMS
from strongroom.channel.ohttp import Form, RequestHead
from strongroom.channel.problems import OHTTP_KEY, Problem
from strongroom.channel.varint import MAX_VARINT, read_varint, varint
from strongroom.errors import ChannelError, EncapsulationInvalid, MessageInvalid, StreamTruncated

SECRET = b"scan of patient smith"
REQUEST = Request("POST", "https", "h", "/predictions/m", (("x-patient", "smith"),), SECRET)
KEM_NAMES = ["X-Wing", "X25519", "P-256"]


@pytest.fixture
def served():
    return Served()


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog):
    """No plaintext, no key, no traceback, whatever was sent."""
    caplog.set_level(logging.DEBUG)
    yield
    for record in caplog.records:
        assert "smith" not in record.getMessage() and record.exc_info is None


def config_of(served, name):
    return next(each for each in served.offered.configs if KEMS[each.kem_id].name == name)


def single(served, name="X25519", request=REQUEST):
    config = config_of(served, name)
    message, opener = ohttp.encapsulate(config, config.pairs[0], request.serialise())
    return bytes(message), opener


def in_chunks(served, name="X25519", request=REQUEST):
    """(front, [framed chunks, the last one final], opener) of a request in thirds."""
    config = config_of(served, name)
    sealer = chunked.RequestSealer(config, config.pairs[0])
    plain = request.serialise()
    third = len(plain) // 3
    framed = [sealer.seal(plain[:third]), sealer.seal(plain[third : 2 * third]), sealer.seal(plain[2 * third :])]
    return sealer.front, [*framed, sealer.finish()], sealer.response_opener()


def assert_refused(served, media_type, body):
    """Refused outside with one of the two key problems, and the model saw nothing."""
    answer = served.ask(media_type, body)
    assert answer.status in (400, 422) and answer.media_type == "application/problem+json"
    assert Problem.parse(bytes(answer.body)).type == OHTTP_KEY
    assert served.opened == []
    return answer.status


def assert_alive(served):
    message, opener = single(served)
    answer = Response.parse(opener.open(served.ask("message/ohttp-req", message).body))
    assert answer.content == b"you said " + SECRET


# -- requests -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", KEM_NAMES)
def test_a_flipped_bit_anywhere_in_a_request_is_refused(served, name):
    message, _ = single(served, name)
    bits = random.Random(1)
    for at in range(len(message)):
        # Every bit of the head and of a short enc; one in each byte of the rest.
        for bit in range(8) if at < 7 or len(message) < 200 else (bits.randrange(8),):
            broken = bytearray(message)
            broken[at] ^= 1 << bit
            assert_refused(served, "message/ohttp-req", bytes(broken))
    assert_alive(served)


def test_a_flipped_bit_anywhere_in_a_chunked_request_is_refused(served):
    front, framed, _ = in_chunks(served)
    message = front + b"".join(framed)
    for at in range(len(message)):
        for bit in range(8):
            broken = bytearray(message)
            broken[at] ^= 1 << bit
            assert_refused(served, "message/ohttp-chunked-req", bytes(broken))
    assert_alive(served)


@pytest.mark.parametrize("name", KEM_NAMES)
def test_a_request_cut_at_any_length_is_refused(served, name):
    message, _ = single(served, name)
    for cut in range(len(message)):
        status = assert_refused(served, "message/ohttp-req", message[:cut])
        assert status == 422
    assert_alive(served)


def test_a_chunked_request_cut_at_any_length_is_refused(served):
    front, framed, _ = in_chunks(served)
    message = front + b"".join(framed)
    for cut in range(len(message)):
        assert assert_refused(served, "message/ohttp-chunked-req", message[:cut]) == 422
    assert_alive(served)


@pytest.mark.parametrize("extra", [b"\x00", bytes(16), b"\x10" + bytes(16)])
def test_bytes_behind_the_end_are_refused(served, extra):
    message, _ = single(served)
    front, framed, _ = in_chunks(served)
    assert_refused(served, "message/ohttp-req", message + extra)
    assert_refused(served, "message/ohttp-chunked-req", front + b"".join(framed) + extra)


@pytest.mark.parametrize(
    "order",
    [
        (1, 0, 2, 3),
        (0, 2, 1, 3),
        (0, 0, 1, 2, 3),
        (0, 1, 1, 2, 3),
        (1, 2, 3),
        (0, 2, 3),
        (0, 1, 3),
        (0, 1, 2),
        (3, 0, 1, 2),
    ],
    ids=str,
)
def test_reordered_doubled_or_dropped_chunks_of_a_request_are_refused(served, order):
    front, framed, _ = in_chunks(served)
    body = front + b"".join(framed[place] for place in order)
    assert assert_refused(served, "message/ohttp-chunked-req", body) == 422
    assert_alive(served)


def test_chunks_of_another_request_do_not_fit_in(served):
    front, framed, _ = in_chunks(served)
    _, others, _ = in_chunks(served)
    for place in range(4):
        mixed = [*framed]
        mixed[place] = others[place]
        assert_refused(served, "message/ohttp-chunked-req", front + b"".join(mixed))


def test_a_chunk_passed_off_as_the_final_one_is_refused(served):
    front, framed, _ = in_chunks(served)
    assert_refused(served, "message/ohttp-chunked-req", front + framed[0] + b"\x00" + framed[1][1:])
    config = config_of(served, "X25519")
    sealer = chunked.RequestSealer(config, config.pairs[0])
    not_final = sealer.seal(REQUEST.serialise())
    assert_refused(
        served, "message/ohttp-chunked-req", sealer.front + b"\x00" + not_final[len(varint(len(not_final))) :]
    )


@pytest.mark.parametrize("length", [16384 + 17, 1 << 20, 1 << 40, MAX_VARINT])
def test_an_oversize_chunk_length_is_refused_without_the_memory_for_it(served, length):
    front, framed, _ = in_chunks(served)
    tracemalloc.start()
    try:
        assert_refused(served, "message/ohttp-chunked-req", front + framed[0] + varint(length) + bytes(100))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_form_passed_off_as_the_other_is_refused(served):
    message, _ = single(served)
    front, framed, _ = in_chunks(served)
    assert_refused(served, "message/ohttp-chunked-req", message)
    assert_refused(served, "message/ohttp-req", front + b"".join(framed))
    size = len(message) - 39
    assert_refused(served, "message/ohttp-chunked-req", message[:39] + varint(size) + message[39:])


def test_a_key_id_kem_or_pair_that_is_not_offered_is_a_400(served):
    message, _ = single(served)
    for at, octets in (
        (0, bytes([message[0] ^ 128])),
        (1, b"\x00\x30"),
        (1, b"\x00\x41"),
        (3, b"\x00\x02"),
        (5, b"\xff\xff"),
    ):
        broken = message[:at] + octets + message[at + len(octets) :] + bytes(1200)
        assert assert_refused(served, "message/ohttp-req", broken) == 400


@pytest.mark.parametrize("media_type", ["application/json", "", "message/bhttp", "message/ohttp-res", "text/plain"])
def test_another_media_type_is_a_415(served, media_type):
    assert served.ask(media_type, single(served)[0]).status == 415
    assert served.opened == []


# -- replays --------------------------------------------------------------------------------


@pytest.mark.parametrize("dated", [True, False])
def test_the_same_bytes_a_second_time_are_a_409(served, dated):
    from email.utils import formatdate

    headers = (("date", formatdate(usegmt=True)),) if dated else ()
    message, _ = single(served, request=Request("POST", "https", "h", "/predictions/m", headers))
    assert served.ask("message/ohttp-req", message).status == 200
    assert served.ask("message/ohttp-req", message).status == 409
    assert len(served.opened) == 1


def test_the_same_bytes_twice_in_one_batch_run_once(served):
    item = ("message/ohttp-req", single(served)[0])
    assert sorted(answer.status for answer in served.batch(item, item)) == [200, 409]
    assert len(served.opened) == 1


def test_garbage_behind_a_copied_head_does_not_burn_the_honest_request(served):
    message, opener = single(served)
    assert served.ask("message/ohttp-req", message[:39] + bytes(len(message) - 39)).status == 422
    assert opener.open(served.ask("message/ohttp-req", message).body)


def test_a_copied_enc_under_another_form_counts_as_a_replay_once_opened(served):
    message, _ = single(served)
    assert served.ask("message/ohttp-req", message).status == 200
    assert served.ask("message/ohttp-chunked-req", message[:39] + b"\x00" + bytes(16)).status == 409


def test_one_bad_item_does_not_sink_its_batch(served):
    good, opener = single(served)
    other, _ = single(served)
    broken = other[:-1] + bytes([other[-1] ^ 1])
    front, framed, streamed = in_chunks(served, "X-Wing")
    answers = served.batch(
        ("message/ohttp-req", broken),
        ("application/json", b"{}"),
        ("message/ohttp-chunked-req", front + b"".join(framed)),
        ("message/ohttp-req", b""),
        ("message/ohttp-req", good),
    )
    assert [answer.status for answer in answers] == [422, 415, 200, 422, 200]
    assert Response.parse(opener.open(answers[4].body)).status == 200
    plain = b"".join([*streamed.feed(answers[2].body), streamed.finish()])
    assert Response.parse(plain).content == b"you said " + SECRET


# -- what opens, and is not valid -------------------------------------------------------------


def inside(served, plain):
    """The encapsulated answer to a message that opens and holds `plain`."""
    config = config_of(served, "X25519")
    message, opener = ohttp.encapsulate(config, config.pairs[0], plain)
    answer = served.ask("message/ohttp-req", bytes(message))
    assert (answer.status, answer.media_type) == (200, "message/ohttp-res")
    return Response.parse(opener.open(answer.body))


CONTROL = b"".join(varint(len(each)) + each for each in (b"POST", b"https", b"h", b"/predictions/m"))


@pytest.mark.parametrize(
    ("plain", "status"),
    [
        (b"", 400),
        (b"\x04", 400),
        (b"\x01\x40\xc8", 400),
        (b"\x00" + varint(MAX_VARINT), 431),
        (b"\x00" + varint(4) + b"POST" + varint(1 << 30), 431),
        (b"\x00" + CONTROL + varint(MAX_VARINT), 431),
        (b"\x00" + CONTROL + varint(1 << 17) + bytes(1 << 17), 431),
        (b"\x00" + CONTROL + b"\x00" + varint(MAX_VARINT), 413),
        (b"\x00" + CONTROL + b"\x00" + varint(1 << 29), 400),
        (b"\x00" + CONTROL + b"\x00\x00" + varint(MAX_VARINT), 431),
        (b"\x00" + CONTROL + b"\x00\x00\x00\x01", 400),
        (b"\x02" + CONTROL + varint(MAX_VARINT), 431),
        (b"\x02" + CONTROL + b"\x01a" + varint(MAX_VARINT), 431),
        (b"\x02" + CONTROL + b"\x01a\x01b" * 300 + b"\x00\x00\x00", 431),
        (b"\x02" + CONTROL + b"\x00" + varint(MAX_VARINT), 413),
        (b"\x02" + CONTROL + b"\x00\x05ab", 400),
        (b"\x00" + CONTROL + b"\x06\x01a\x03\r\nb\x00\x00", 400),
    ],
    ids=range(17),
)
def test_a_bomb_or_a_lie_in_the_binary_http_is_an_encapsulated_refusal(served, plain, status):
    tracemalloc.start()
    try:
        assert inside(served, plain).status == status
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert served.opened == []
    assert_alive(served)


def test_content_over_the_servers_limit_is_an_encapsulated_413():
    served = Served(limits=Limits(content=1000))
    assert inside(served, Request("POST", "https", "h", "/predictions/m", (), bytes(1001)).serialise()).status == 413
    assert inside(served, Request("POST", "https", "h", "/predictions/m", (), bytes(1000)).serialise()).status == 200


def test_expect_and_a_date_outside_the_window_are_encapsulated_refusals(served):
    expect = Request("POST", "https", "h", "/predictions/m", (("expect", "100-continue"),))
    assert inside(served, expect.serialise()).status == 417
    late = Request("POST", "https", "h", "/predictions/m", (("date", "Thu, 01 Jan 2026 00:00:00 GMT"),))
    answer = inside(served, late.serialise())
    assert answer.status == 400 and Problem.parse(answer.content).type.endswith("#date") and answer.header("date")
    assert served.opened == []


def test_twenty_thousand_tiny_chunks_stay_cheap(served):
    config = config_of(served, "X25519")
    sealer = chunked.RequestSealer(config, config.pairs[0])
    plain = Request("POST", "https", "h", "/predictions/m", (), bytes(20_000)).serialise()
    body = sealer.front + b"".join(sealer.seal(plain[at : at + 1]) for at in range(len(plain))) + sealer.finish()
    assert served.ask("message/ohttp-chunked-req", body).status == 200
    assert len(served.opened[0].content) == 20_000


# -- answers --------------------------------------------------------------------------------


def test_a_flipped_bit_or_a_cut_anywhere_in_an_answer_is_noticed(served):
    message, opener = single(served)
    answer = bytes(served.ask("message/ohttp-req", message).body)
    for at in range(len(answer)):
        broken = bytearray(answer)
        broken[at] ^= 1 << at % 8
        for octets in (bytes(broken), answer[:at]):
            with pytest.raises(EncapsulationInvalid):
                opener.open(octets)
    assert Response.parse(opener.open(answer)).status == 200


def read_stream(opener, octets):
    pieces = opener.feed(octets)
    return b"".join([*pieces, opener.finish()])


def streamed(served, request=REQUEST):
    """(a function that makes an opener, the bytes of a chunked answer)."""
    front, framed, opener = in_chunks(served, request=request)
    answer = bytes(served.ask("message/ohttp-chunked-req", front + b"".join(framed)).body)
    return lambda: chunked.ResponseOpener(opener._context, opener._enc), answer


def test_a_flipped_bit_or_a_cut_anywhere_in_a_chunked_answer_is_noticed(served):
    fresh, answer = streamed(served)
    whole = read_stream(fresh(), answer)
    for at in range(len(answer)):
        for bit in range(8):
            broken = bytearray(answer)
            broken[at] ^= 1 << bit
            with pytest.raises((EncapsulationInvalid, StreamTruncated)):
                read_stream(fresh(), bytes(broken))
        with pytest.raises(StreamTruncated):
            read_stream(fresh(), answer[:at])
    assert Response.parse(whole).content == b"you said " + SECRET


def test_what_a_cut_stream_gave_before_the_end_is_a_true_prefix(served):
    fresh, answer = streamed(served)
    whole = read_stream(fresh(), answer)
    for cut in range(len(answer)):
        assert whole.startswith(b"".join(fresh().feed(answer[:cut])))


def test_swapped_answers_open_for_neither_client(served):
    (one, first), (two, second) = single(served, "X-Wing"), single(served, "X-Wing")
    answers = [served.ask("message/ohttp-req", message).body for message in (one, two)]
    with pytest.raises(EncapsulationInvalid):
        first.open(answers[1])
    with pytest.raises(EncapsulationInvalid):
        second.open(answers[0])


def chunks_of(answer):
    """The framed chunks behind the response nonce of a suite with a 16-byte key; the last one is final."""
    found, at = [], 16
    while at < len(answer):
        size, start = read_varint(answer, at)
        end = start + size if size else len(answer)
        found.append(answer[at:end])
        at = end
    return found


def test_swapped_streams_open_for_neither_client(served):
    """Whole, and chunk for chunk: the head of one's own answer and the rest of the other's."""
    long = replace(REQUEST, content=SECRET * 2000)
    (one, first), (two, second) = streamed(served, long), streamed(served, long)
    assert read_stream(one(), first) == read_stream(two(), second)  # both said the same, and still
    for fresh, own, other in ((one, first, second), (two, second, first)):
        with pytest.raises((EncapsulationInvalid, StreamTruncated)):
            read_stream(fresh(), other)
        with pytest.raises((EncapsulationInvalid, StreamTruncated)):
            read_stream(fresh(), own[:16] + other[16:])
        ours, theirs = chunks_of(own), chunks_of(other)
        assert len(ours) == len(theirs) == 4
        for place in range(len(ours)):
            mixed = own[:16] + b"".join([*ours[:place], theirs[place], *ours[place + 1 :]])
            opener, came = fresh(), []
            with pytest.raises((EncapsulationInvalid, StreamTruncated)):
                came += opener.feed(mixed)
                opener.finish()
            assert len(came) <= place


def test_a_single_answer_does_not_pass_for_a_chunked_one(served):
    message, opener = single(served)
    answer = bytes(served.ask("message/ohttp-req", message).body)
    streaming = chunked.ResponseOpener(opener._context, opener._enc)
    with pytest.raises((EncapsulationInvalid, StreamTruncated)):
        read_stream(streaming, answer[:16] + b"\x00" + answer[16:])


# -- contexts, the one thing a worker ever holds ------------------------------------------------


def test_a_context_opens_its_own_request_and_no_other(served):
    (one, _), (two, _) = single(served), single(served)
    head, enc, _ = RequestHead.parse(one)
    _, context = served.keys.open(head.serialise(), enc, Form.SINGLE)
    with pytest.raises(EncapsulationInvalid):
        ohttp.open_request(RecipientContext.parse(context), RequestHead.parse(two)[2])
    assert ohttp.open_request(RecipientContext.parse(context), RequestHead.parse(one)[2]) == REQUEST.serialise()


def test_another_models_keys_do_not_know_the_request(served):
    other = Served()
    message, _ = single(served)
    shared_id = config_of(other, "X25519").key_id
    assert other.ask("message/ohttp-req", message).status in (400, 422)
    assert other.ask("message/ohttp-req", bytes([shared_id]) + message[1:]).status == 422
    assert other.opened == []


def test_no_parser_raises_anything_but_its_own_error():
    """Ten thousand random mutations of valid messages: a typed refusal or a valid message, never another exception."""
    random_ = random.Random(20261122)
    valid = [
        REQUEST.serialise(),
        Response(200, (("a", "b"),), b"c").serialise(),
        b"\x02" + CONTROL + b"\x01a\x01b\x00\x02xy\x00\x00",
    ]
    for _ in range(10_000):
        message = bytearray(random_.choice(valid))
        for _ in range(random_.randrange(1, 5)):
            at = random_.randrange(len(message))
            message[at : at + random_.randrange(2)] = random_.randbytes(random_.randrange(3))
            message = message or bytearray(1)
        for response in (True, False):
            reader = MessageReader(response=response)
            try:
                reader.feed(bytes(message))
                reader.finish()
            except MessageInvalid:
                pass
            except ChannelError as error:  # pragma: no cover
                pytest.fail(f"{type(error).__name__}")
