"""Write the archive vectors: ``python tests/vectors/archive/generate.py`` from the repository's root.

Made by the plain writer in tests/archive/, which follows docs/format.md and imports nothing of ours. A vector is a
text head, an empty line, and a zlib stream of the archive (of a tar of it, for the directory form). What
``expect`` and ``released`` say was decided here by hand, vector by vector; the plain reader is asked to agree
before a file is written.
"""

from __future__ import annotations

import io
import sys
import tarfile
import tempfile
import zlib
from dataclasses import replace
from hashlib import sha256 as _sha256
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from archive.plain_reader import Plain, Refused, hkdf, labelled, sha256  # noqa: E402
from archive.plain_writer import Author, Recipe, generation, key_slot, phrase_slot, u  # noqa: E402

NOW = 1_795_000_000
ALICE, HYBRID, MALLORY = Author("alice"), Author("alice", 2), Author("mallory")
SEED = sha256(b"identity")
SMALL = [("model.pt", bytes(range(256)) * 20), ("handler.py", b"print('hello')\n"), ("MAR-INF/MANIFEST.json", b"{}")]
B = 4096 + 16

made: dict[str, dict[str, Any]] = {}


def recipe(name: str, **changes: Any) -> Recipe:
    return replace(
        Recipe(list(SMALL), ALICE, sha256(b"key " + name.encode()), sha256(b"id " + name.encode())), **changes
    )


def vector(
    name: str, expect: str, comment: str, *, opened: int | None = None, how: str = "key", **changes: Any
) -> None:
    """One vector. `opened` counts the plaintext octets that may come out before a refusal."""
    head = {key: changes.pop(key) for key in ("authors", "demand", "now", "secret") if key in changes}
    cooked = recipe(name, **changes)
    whole = b"".join(octets for _, octets in cooked.files)
    released = whole if expect == "success" else whole[: opened or 0]
    files = cooked.build()
    assert not cooked.edits, f"{name}: nothing used {list(cooked.edits)}"
    fields = {
        "expect": expect,
        "released": sha256(released).hex(),
        "form": "directory" if cooked.directory else "file",
        "now": head.get("now", NOW),
        "demand": head.get("demand", "ed25519"),
        "comment": comment,
    }
    authors = [f"{each.kind}:{each.keys.hex()}" for each in head.get("authors", [cooked.author])]
    opener = ("key", head.get("secret", cooked.key).hex()) if how == "key" else (how, head["secret"])
    lines = [f"{key}: {value}" for key, value in fields.items()] + [f"author: {each}" for each in authors]
    lines.append(f"{opener[0]}: {opener[1]}")
    if expect == "success":
        lines += [f"member: {_sha256(octets).hexdigest()} {name}" for name, octets in cooked.files]
    made[name] = {"lines": lines, "files": files, "fields": fields, "authors": authors, "opener": opener}


def on(stage: str, function: Any, **more: Any) -> dict[str, Any]:
    return {"edits": {stage: function}, **more}


def flip(at: int, bit: int = 1):
    return lambda octets: octets[:at] + bytes([octets[at] ^ bit]) + octets[at + 1 :]


def put(**values: bytes):
    return lambda fields: fields | {key.replace("_", " "): value for key, value in values.items()}


def named(name: str) -> dict[str, Any]:
    return {"files": [(name, b"x"), *SMALL[1:]]}


def good() -> None:
    v = lambda name, comment, **changes: vector(name, "success", comment, **changes)  # noqa: E731
    v("plain", "Three files, one over two blocks.")
    v("suite-sha256", "Suite 2.", suite=2)
    v("directory", "The directory form.", directory=True)
    v("hybrid", "Ed25519 and ML-DSA-65, and the verifier demands both.", author=HYBRID, demand="hybrid")
    v("two-authors", "The second author in the list signed it.", authors=[MALLORY, ALICE])
    v("slot-x25519", "Opened by an X25519 identity.", how="x25519", secret=SEED.hex(), slots=[key_slot(1, SEED)])
    v("slot-xwing", "Opened by an X-Wing identity.", how="xwing", secret=SEED.hex(), slots=[key_slot(2, SEED)])
    v(
        "slot-passphrase",
        "Opened by a passphrase.",
        how="passphrase",
        secret="correct horse",
        slots=[phrase_slot("correct horse", b"s" * 16)],
    )
    v(
        "slot-passphrase-nfc",
        "The passphrase is given in NFD and was wrapped in NFC.",
        how="passphrase",
        secret="caf\u0065\u0301",
        slots=[phrase_slot("caf\u00e9", b"s" * 16)],
    )
    v(
        "slot-second-passphrase",
        "The second of two passphrases.",
        how="passphrase",
        secret="two",
        slots=[phrase_slot("one", b"1" * 16), phrase_slot("two", b"2" * 16)],
    )
    provider = lambda key, digest: (4, sha256(digest), bytes([4]) + b"kms1" + b"opaque")  # noqa: E731
    v(
        "slot-provider",
        "A provider's slot beside X25519.",
        how="x25519",
        secret=SEED.hex(),
        slots=[provider, key_slot(1, SEED)],
    )
    strange = lambda key, digest: (77, sha256(b"77"), b"whatever")  # noqa: E731
    v(
        "slot-unknown-type",
        "A slot of an unknown type is skipped.",
        how="x25519",
        secret=SEED.hex(),
        slots=[strange, key_slot(1, SEED)],
    )
    many = [key_slot(1, sha256(u(i, 2))) for i in range(63)]
    v(
        "slots-64",
        "Sixty-four recipients; the last opens.",
        how="x25519",
        secret=SEED.hex(),
        pages=2,
        slots=[*many, key_slot(1, SEED)],
    )
    v(
        "generation-b",
        "Generation B has the higher sequence.",
        how="x25519",
        secret=SEED.hex(),
        **second(lambda a, b: a + b),
    )
    v(
        "generation-b-torn",
        "Generation B was torn while it was written; A still opens.",
        slots=[key_slot(1, SEED)],
        how="x25519",
        secret=SEED.hex(),
        edits={"area": lambda area: area[:4096] + area[:90] + bytes(4006)},
    )
    v(
        "generation-a-torn",
        "Generation A was torn while it was rewritten; B opens.",
        how="x25519",
        secret=SEED.hex(),
        **second(lambda a, b: a[:85] + b"torn" + a[89:] + b),
    )
    v(
        "generation-tail",
        "Octets after the slots of a generation are not looked at.",
        edits={"area": lambda area: area[:4000] + b"\xff" * 96 + area[4096:]},
    )
    v("padding", "A padding entry.", padding=3000)
    v("padding-empty", "A padding entry of no octets.", padding=0)
    v("member-empty", "An empty file, in the middle.", files=[*SMALL[:2], ("empty", b""), SMALL[2]])
    v("member-one-block", "A file that fills the first block exactly.", files=[("a", b"a" * 4096), *SMALL])
    v("member-one-more", "A file of one octet more than a block holds.", files=[("a", b"a" * 4097), *SMALL])
    v(
        "member-mid-block",
        "A file of four chunks that begins in the middle of a block.",
        files=[("a", b"a" * 1000), ("b", b"b" * 12_000), *SMALL[1:]],
    )
    for room in (15, 16, 17):
        v(
            f"room-{room}",
            f"{room} octets of a block are left before the next file.",
            files=[("a", b"a" * (4096 - room)), ("b", b"b" * 50), *SMALL[1:]],
        )
    v("members-300", "Three hundred small files.", files=[(f"d/{i:03}", u(i, 2) * (i % 9)) for i in range(300)])
    v("name-unicode", "A name in NFC beyond ASCII.", files=[("modèle/Größe-模型.pt", b"x" * 40), *SMALL[1:]])
    v("name-long", "A name of 1,024 octets.", files=[("/".join(["n" * 255] * 4)[:1024], b"x"), *SMALL[1:]])
    v(
        "extensions-all",
        "Every known extension.",
        now=99,
        extensions={5: u(1, 8), 0x8006: u(100, 8), 7: b"\x30\x00", 8: "é".encode(), 0x8003: u(2**63, 8)},
    )
    v("extension-unknown", "An unknown extension that is not critical.", extensions={0x0123: b"later"})
    v("flag-lease", "Lease required.", flags=1)
    v("expiry-next-second", "Expires in the next second.", extensions={0x8006: u(NOW + 1, 8)})
    v("settings-all", "Every frontend setting.", config=ALL_SETTINGS)
    v("chunk-64m", "n = 26.", n=26)
    v("pages-32", "The largest slot area.", pages=32)


ALL_SETTINGS = """\
asyncCommunication: true
batchSize: 7
clientTimeoutInMills: 7
continuousBatching: false
deviceIds: [0, 1]
deviceType: gpu
jobQueueSize: 7
maxBatchDelay: 0
maxNumSequence: 7
maxRetryTimeoutInSec: 7
maxSequenceJobQueueSize: 7
maxWorkers: 7
minWorkers: 2147483647
responseTimeout: 7
sequenceBatching: false
sequenceMaxIdleMSec: 7
sequenceTimeoutMSec: 7
startupTimeout: 7
useJobTicket: true
"""


def second(join: Any, sequence: int = 2) -> dict[str, Any]:
    """Generation A for somebody else, generation B for the identity; `join` puts them together."""
    state: dict[str, Any] = {}

    def keep(header: bytes) -> bytes:
        core = header[4 : 4 + int.from_bytes(header[:4], "big")]
        state["digest"], state["suite"], state["id"] = sha256(core), core[8:10], core[16:48]
        return header

    def area(first: bytes) -> bytes:
        key, digest = state["key"], state["digest"]
        slot_key = hkdf(key, state["id"], 1, "slots", 0, 32)
        return join(first[:4096], generation(sequence, [key_slot(1, SEED)(key, digest)], slot_key, digest, 4096))

    def other(key: bytes, digest: bytes) -> tuple[int, bytes, bytes]:
        state["key"] = key
        return key_slot(1, sha256(b"other"))(key, digest)

    return {"slots": [other], "edits": {"header": keep, "area": area}}


def bad_core() -> None:
    def v(name: str, expect: str, comment: str, **edits: Any) -> None:
        vector(f"core-{name}", expect, comment, edits=edits)

    v("magic", "malformed", "Another magic.", fields=put(magic=b"ZTRONGR1"))
    v("version-2", "unsupported", "The next format version.", fields=put(magic=b"STRONGR2"))
    v("suite-0", "unsupported", "Suite 0.", fields=put(suite=u(0, 2)))
    v("suite-3", "unsupported", "An unknown suite.", fields=put(suite=u(3, 2)))
    v("flag-unknown", "unsupported", "A flag of bit 1.", fields=put(flags=u(2, 4)))
    v("flag-high", "unsupported", "A flag of bit 31 beside a known one.", fields=put(flags=u(0x80000001, 4)))
    v("n-11", "malformed", "Chunks of 2,048 octets.", fields=put(n=u(11, 1)))
    v("n-27", "malformed", "Chunks of 128 MiB.", fields=put(n=u(27, 1)))
    v("pages-0", "malformed", "No slot area.", fields=put(pages=u(0, 1)))
    v("pages-33", "malformed", "A slot area too large.", fields=put(pages=u(33, 1)))
    v("payload-0", "malformed", "No payload.", fields=put(P=u(0, 8)))
    v("payload-huge", "malformed", "A payload of 2^63 octets.", fields=put(P=u(2**63, 8)))
    v("payload-longer", "truncated", "The payload is said to be longer than the file.", fields=put(P=u(60_000, 8)))
    v("index-short", "malformed", "An index of 16 octets.", fields=put(I=u(16, 4)))
    v("index-odd", "malformed", "An index length off by one.", fields=put(I=u(529, 4)))
    v("index-huge", "malformed", "An index of 4 GiB.", fields=put(I=u(2**32 - 1, 4)))
    v("tenant-missing", "malformed", "No tenant.", extensions=lambda each: each[1:])
    v("lineage-missing", "malformed", "No lineage.", extensions=lambda each: each[:1] + each[2:])
    v("version-missing", "malformed", "No version.", extensions=lambda each: each[:2] + each[3:])
    v("author-missing", "malformed", "No author.", extensions=lambda each: each[:3])
    v("version-0", "malformed", "Version 0.", extensions=lambda each: [*each[:2], (0x8003, u(0, 8)), each[3]])
    v(
        "version-short",
        "malformed",
        "A version of four octets.",
        extensions=lambda each: [*each[:2], (0x8003, u(1, 4)), each[3]],
    )
    v(
        "tenant-path",
        "malformed",
        "A tenant that would leave its path.",
        extensions=lambda each: [(0x8001, b"../x"), *each[1:]],
    )
    v("tenant-dot", "malformed", "A tenant of one dot.", extensions=lambda each: [(0x8001, b"."), *each[1:]])
    v(
        "tenant-newline",
        "malformed",
        "A tenant that ends in a newline.",
        extensions=lambda each: [(0x8001, b"a\n"), *each[1:]],
    )
    v(
        "extensions-order",
        "malformed",
        "Extensions out of order.",
        extensions=lambda each: [each[1], each[0], *each[2:]],
    )
    v("extension-twice", "malformed", "One extension twice.", extensions=lambda each: [*each, each[-1]])
    v(
        "extension-critical",
        "unsupported",
        "An unknown critical extension.",
        extensions=lambda each: [*each, (0x8123, b"")],
    )
    v(
        "extension-bit",
        "malformed",
        "The expiry without its critical bit.",
        extensions=lambda each: [*each, (0x0006, u(1, 8))],
    )
    v("extension-cut", "malformed", "The last extension is cut.", core=lambda core: core[:-1])
    v(
        "owner-control",
        "malformed",
        "An owner with a control character.",
        extensions=lambda each: [*each, (8, b"a\x1bb")],
    )
    v("owner-empty", "malformed", "An empty owner.", extensions=lambda each: [*each, (8, b"")])
    v("owner-latin", "malformed", "An owner that is not UTF-8.", extensions=lambda each: [*each, (8, b"\xe9")])
    v("broker-key-empty", "malformed", "An empty broker key.", extensions=lambda each: [*each[:4], (7, b"")])


def bad_signature() -> None:
    def v(name: str, expect: str, comment: str, **changes: Any) -> None:
        vector(f"signature-{name}", expect, comment, **changes)

    v("flipped", "tampered", "One bit of the signature.", edits={"signature": flip(3)})
    v("core-flipped", "tampered", "One bit of the archive id after signing.", edits={"signed core": flip(20)})
    v(
        "version-raised",
        "tampered",
        "The version was raised after signing.",
        edits={"signed core": lambda core: core.replace(b"\x80\x03\x00\x08" + u(1, 8), b"\x80\x03\x00\x08" + u(2, 8))},
    )
    v(
        "hybrid-lattice",
        "tampered",
        "The ML-DSA signature of a hybrid is bad.",
        author=HYBRID,
        edits={"signature": flip(-1 % 3373)},
    )
    v(
        "hybrid-curve",
        "tampered",
        "The Ed25519 signature of a hybrid is bad.",
        author=HYBRID,
        edits={"signature": flip(0)},
    )
    v(
        "hybrid-stripped",
        "tampered",
        "A hybrid's Ed25519 half shown as an archive of kind 1.",
        author=HYBRID,
        authors=[HYBRID, ALICE],
        demand="ed25519",
        edits={"header": strip},
    )
    v(
        "kind-3",
        "unsupported",
        "An unknown kind of signature.",
        edits={"header": lambda header: header[:-98] + u(3, 2) + header[-96:]},
    )
    v(
        "keys-swapped",
        "tampered",
        "Another author's key beside the signature.",
        authors=[ALICE, MALLORY],
        edits={"header": lambda header: header[:-96] + MALLORY.keys + header[-64:]},
    )
    v("cut", "malformed", "The signature is one octet short.", edits={"header": lambda header: header[:-1]})
    v("trailing", "malformed", "An octet after the signature.", edits={"header": lambda header: header + b"\0"})
    v(
        "unlabelled",
        "tampered",
        "The author signed the bare core, without the label.",
        edits={"core": remember, "signature": lambda _: ALICE.curve.sign(remembered[0])},
    )
    v("author-unknown", "author unknown", "A good signature, by somebody else.", author=MALLORY, authors=[ALICE])
    v("no-authors", "author unknown", "A verifier that trusts nobody.", authors=[])
    v("downgraded", "downgraded", "Ed25519 where hybrid is demanded.", demand="hybrid")
    v("expired", "expired", "Expired this second.", extensions={0x8006: u(NOW, 8)})
    v("expired-long-ago", "expired", "Expired in 1970.", extensions={0x8006: u(1, 8)})


remembered: list[bytes] = []


def remember(core: bytes) -> bytes:
    remembered[:] = [core]
    return core


def strip(header: bytes) -> bytes:
    core = header[: 4 + int.from_bytes(header[:4], "big")]
    return core + u(1, 2) + HYBRID.keys[:32] + header[len(core) + 2 + 1984 :][:64]


def bad_clear() -> None:
    def config(text: str) -> dict[str, Any]:
        return {"config": text}

    def v(name: str, expect: str, comment: str, **changes: Any) -> None:
        vector(f"clear-{name}", expect, comment, **changes)

    v(
        "handler",
        "malformed",
        "The manifest names another handler.",
        **on("clear", lambda each: [each[0].replace(b"strongroom_handlers.sealed", b"os"), each[1]]),
    )
    v(
        "requirements",
        "malformed",
        "The manifest names a requirements file.",
        **on(
            "clear",
            lambda each: [
                each[0].replace(b'    "handler"', b'    "requirementsFile": "r.txt",\n    "handler"'),
                each[1],
            ],
        ),
    )
    v(
        "space",
        "malformed",
        "One more space in the manifest, signed.",
        **on("clear", lambda each: [each[0].replace(b'": "', b'":  "'), each[1]]),
    )
    v("name", "malformed", "A model name that is a path.", model=("../tiny", "1.0"))
    v(
        "twice",
        "malformed",
        "A manifest with a member twice.",
        **on("clear", lambda each: [each[0].replace(b'  "runtime"', b'  "runtime": "x",\n  "runtime"'), each[1]]),
    )
    v(
        "manifest-other",
        "tampered",
        "A canonical manifest that was not signed.",
        **on("found clear", lambda each: [each[0].replace(b"tiny", b"liny"), each[1]]),
    )
    v(
        "config-other",
        "tampered",
        "A canonical configuration that was not signed.",
        **on("found clear", lambda each: [each[0], each[1].replace(b"120", b"121")]),
    )
    v(
        "config-unknown",
        "malformed",
        "A key that is not on the list.",
        **config("minWorkers: 1\nresponseTimeout: 1\nstartupTimeout: 1\nuseVenv: true\n"),
    )
    v("config-no-timeout", "malformed", "A timeout is missing.", **config("responseTimeout: 1\n"))
    v("config-order", "malformed", "Keys out of order.", **config("startupTimeout: 1\nresponseTimeout: 1\n"))
    v(
        "config-twice",
        "malformed",
        "A key twice.",
        **config("responseTimeout: 1\nresponseTimeout: 1\nstartupTimeout: 1\n"),
    )
    v(
        "config-zeros",
        "malformed",
        "A number with a leading zero.",
        **config("responseTimeout: 01\nstartupTimeout: 1\n"),
    )
    v(
        "config-big",
        "malformed",
        "A number above 2^31 - 1.",
        **config("responseTimeout: 2147483648\nstartupTimeout: 1\n"),
    )
    v(
        "config-kind",
        "malformed",
        "A truth where a number belongs.",
        **config("batchSize: true\nresponseTimeout: 1\nstartupTimeout: 1\n"),
    )
    v("config-no-newline", "malformed", "No newline at the end.", **config("responseTimeout: 1\nstartupTimeout: 1"))
    v("config-crlf", "malformed", "Lines of a DOS text.", **config("responseTimeout: 1\r\nstartupTimeout: 1\r\n"))
    v(
        "config-anchor",
        "malformed",
        "YAML beyond the listed lines.",
        **config("responseTimeout: &a 1\nstartupTimeout: *a\n"),
    )


def bad_outer() -> None:
    def v(name: str, expect: str, comment: str, function: Any, stage: str = "pieces", **changes: Any) -> None:
        vector(f"outer-{name}", expect, comment, edits={stage: function}, **changes)

    def piece(number: int, function: Any):
        return lambda pieces: [function(each) if i == number else each for i, each in enumerate(pieces)]

    def gap(octets: bytes) -> int:
        return octets.rindex(b"SRGP")

    hidden = b"PK\x03\x04\x14\0\0\0\0\0\0\0\x21\0" + u(0, 12) + b"\x10\0\0\0sitecustomize.py"
    v(
        "hidden-entry",
        "malformed",
        "A local entry before the gap that the central directory does not list.",
        piece(0, lambda o: o[: gap(o)] + hidden + o[gap(o) : -len(hidden)]),
    )
    v(
        "hidden-in-zeros",
        "tampered",
        "A local entry in the zeros after the gap's magic.",
        piece(0, lambda o: o[: gap(o) + 4] + hidden + o[gap(o) + 4 + len(hidden) :]),
    )
    v(
        "hidden-after-slots",
        "tampered",
        "A local entry between the slots and the payload.",
        piece(2, lambda o: hidden + o[len(hidden) :]),
    )
    v(
        "gap-magic",
        "malformed",
        "The gap begins otherwise.",
        piece(0, lambda o: o[: gap(o)] + b"SRGQ" + o[gap(o) + 4 :]),
    )
    v("date", "tampered", "The first entry's date.", piece(0, flip(12)))
    v("deflated", "tampered", "The first entry says it is deflated.", piece(0, lambda o: o[:8] + b"\x08" + o[9:]))
    v("crc", "tampered", "The first entry's checksum.", piece(0, flip(14)))
    v("size-lie", "tampered", "The first entry's uncompressed size.", piece(0, flip(22)))
    v("extra-field", "malformed", "The first entry has an extra field.", piece(0, lambda o: o[:28] + b"\x04" + o[29:]))
    v("first-name", "malformed", "The first entry has another name.", piece(0, flip(30)))
    v(
        "payload-name",
        "tampered",
        "The payload's local header has another name.",
        piece(2, lambda o: o.replace(b"SEALED-INF/payload", b"SEALED-INF/Payload")),
    )
    v("payload-crc", "tampered", "The payload's checksum in its local header.", piece(2, flip(4096 - 68 + 14)))
    v(
        "directory-name",
        "tampered",
        "A name in the central directory.",
        piece(4, lambda o: o.replace(b"model-config.yaml", b"model-config.yamI")),
    )
    v("directory-comment", "tampered", "The end record announces a comment.", piece(4, lambda o: o[:-2] + b"\x01\0"))
    v("trailing", "tampered", "An octet after the end.", lambda file: file + b"\0", "file")
    v("cut-end", "truncated", "The last octet is missing.", lambda file: file[:-1], "file")
    v(
        "cut-payload",
        "truncated",
        "The file ends in the payload.",
        lambda file: file[: file.index(b"SEALED-INF/payload") + 2000],
        "file",
    )
    v("cut-front", "truncated", "The file ends in the header.", lambda file: file[:700], "file")
    v("empty", "truncated", "An empty file.", lambda file: b"", "file")
    v("ordinary-zip", "malformed", "An ordinary zip.", lambda file: b"PK\x03\x04" + bytes(200), "file")
    v("prefixed", "malformed", "Something before the first entry.", lambda file: b"#!/bin/sh\n" + file, "file")
    d = {"directory": True}
    v(
        "folder-file-more",
        "tampered",
        "A file more in the folder.",
        lambda each: each | {"sitecustomize.py": b"boom"},
        "folder",
        **d,
    )
    v(
        "folder-file-inside",
        "tampered",
        "A file more inside MAR-INF.",
        lambda each: each | {"MAR-INF/x": b""},
        "folder",
        **d,
    )
    v(
        "folder-file-missing",
        "malformed",
        "The slots are missing.",
        lambda each: {k: o for k, o in each.items() if "slots" not in k},
        "folder",
        **d,
    )
    v(
        "folder-payload-short",
        "truncated",
        "The payload is short.",
        lambda each: each | {"SEALED-INF/payload": each["SEALED-INF/payload"][:-1]},
        "folder",
        **d,
    )
    v(
        "folder-payload-long",
        "tampered",
        "The payload is long.",
        lambda each: each | {"SEALED-INF/payload": each["SEALED-INF/payload"] + b"x"},
        "folder",
        **d,
    )
    v(
        "folder-slots-short",
        "truncated",
        "The slot area is short.",
        lambda each: each | {"SEALED-INF/slots": each["SEALED-INF/slots"][:-1]},
        "folder",
        **d,
    )


def bad_slots() -> None:
    def v(name: str, expect: str, comment: str, how: str = "x25519", secret: str = "", **changes: Any) -> None:
        changes.setdefault("slots", [key_slot(1, SEED)])
        vector(f"slots-{name}", expect, comment, how=how, secret=secret or SEED.hex(), **changes)

    rehash = lambda g: g[:50] + sha256(g[:50] + g[82 : 82 + int.from_bytes(g[14:18], "big")]) + g[82:]  # noqa: E731
    v("both-torn", "malformed", "No generation is intact.", edits={"area": flip(60)})
    v("equal-sequences", "malformed", "Both generations have sequence 1.", edits={"area": lambda a: a[:4096] * 2})
    v(
        "sequence-0",
        "malformed",
        "Sequence 0.",
        edits={"area": lambda a: rehash(a[:4] + u(0, 8) + a[12:4096]) + a[4096:]},
    )
    v(
        "count-65",
        "malformed",
        "Sixty-five slots.",
        edits={"area": lambda a: rehash(a[:12] + u(65, 2) + a[14:4096]) + a[4096:]},
    )
    v(
        "count-more",
        "malformed",
        "More slots announced than there are.",
        edits={"area": lambda a: rehash(a[:12] + u(2, 2) + a[14:4096]) + a[4096:]},
    )
    v(
        "count-less",
        "malformed",
        "Fewer slots announced than there are.",
        edits={"area": lambda a: rehash(a[:12] + u(0, 2) + a[14:4096]) + a[4096:]},
    )
    v(
        "mac",
        "tampered",
        "The recipients were changed by somebody without the key.",
        edits={"area": lambda a: rehash(a[:18] + bytes(32) + a[50:4096]) + a[4096:]},
    )
    v(
        "mac-sequence",
        "tampered",
        "An old set of recipients under a new sequence.",
        edits={"area": lambda a: rehash(a[:4] + u(9, 8) + a[12:4096]) + a[4096:]},
    )
    v("recipient-twice", "malformed", "One recipient twice.", slots=[key_slot(1, SEED)] * 2)
    v("passphrases-5", "malformed", "Five passphrases.", slots=[phrase_slot(str(i), bytes([i]) * 16) for i in range(5)])
    v("none", "no recipient", "An archive without recipients.", slots=[])
    v("not-mine", "no recipient", "Another recipient's slot only.", slots=[key_slot(1, sha256(b"x"))])
    v("wrong-kind", "no recipient", "The seed's X-Wing slot, asked with its X25519 key.", slots=[key_slot(2, SEED)])
    v(
        "passphrase-wrong",
        "no recipient",
        "A wrong passphrase.",
        how="passphrase",
        secret="no",
        slots=[phrase_slot("yes", b"s" * 16)],
    )
    short = lambda slots: [(kind, name, body[:-1]) for kind, name, body in slots]  # noqa: E731
    v("x25519-short", "malformed", "An X25519 body one octet short.", edits={"slots": short})
    v(
        "xwing-short",
        "malformed",
        "An X-Wing body one octet short.",
        how="xwing",
        slots=[key_slot(2, SEED)],
        edits={"slots": short},
    )
    v(
        "passphrase-short",
        "malformed",
        "A passphrase body one octet short.",
        how="passphrase",
        secret="p",
        slots=[phrase_slot("p", b"s" * 16)],
        edits={"slots": short},
    )
    flipped = lambda slots: [(kind, name, flip(-1 % len(body))(body)) for kind, name, body in slots]  # noqa: E731
    v("x25519-flipped", "tampered", "One bit of a wrapped key.", edits={"slots": flipped})
    v(
        "xwing-flipped",
        "tampered",
        "One bit of a wrapped key.",
        how="xwing",
        slots=[key_slot(2, SEED)],
        edits={"slots": flipped},
    )
    v(
        "xwing-enc",
        "tampered",
        "One bit of the encapsulated key.",
        how="xwing",
        slots=[key_slot(2, SEED)],
        edits={"slots": lambda s: [(k, n, flip(5)(b)) for k, n, b in s]},
    )
    stolen = lambda key, digest: (1, key_slot(1, SEED)(key, digest)[1], key_slot(1, SEED)(key, sha256(b"other"))[2])  # noqa: E731
    v("stolen", "tampered", "A slot moved here from another archive.", slots=[stolen])
    wrong = lambda key, digest: key_slot(1, SEED)(bytes(32), digest)  # noqa: E731
    v("wrong-key-wrapped", "tampered", "A stranger wrapped a wrong key to this recipient.", slots=[wrong])
    costly = lambda slots: [(kind, name, body[:16] + u(2**21 + 1, 4) + body[20:]) for kind, name, body in slots]  # noqa: E731
    v(
        "argon-memory",
        "malformed",
        "A passphrase slot that asks for more than 2 GiB.",
        how="passphrase",
        secret="p",
        slots=[phrase_slot("p", b"s" * 16)],
        edits={"slots": costly},
    )
    passes = lambda slots: [(kind, name, body[:20] + u(17, 4) + body[24:]) for kind, name, body in slots]  # noqa: E731
    v(
        "argon-passes",
        "malformed",
        "A passphrase slot of seventeen iterations.",
        how="passphrase",
        secret="p",
        slots=[phrase_slot("p", b"s" * 16)],
        edits={"slots": passes},
    )


def bad_payload() -> None:
    def v(name: str, expect: str, comment: str, opened: int | None = None, **changes: Any) -> None:
        vector(f"payload-{name}", expect, comment, opened=opened, **changes)

    first = 4096
    v("flipped", "tampered", "One bit of the first block.", edits={"part": flip(100)})
    v(
        "flipped-second",
        "tampered",
        "One bit of the second block; random access may release the first chunk.",
        edits={"part": flip(B + 5)},
        opened=first,
    )
    v("flipped-tag", "tampered", "One bit of a tag.", edits={"part": flip(B - 1)})
    v(
        "digest-flipped",
        "tampered",
        "One bit of the digest list.",
        edits={"part": lambda part: flip(len(part) - 1)(part)},
    )
    v(
        "digests-swapped",
        "tampered",
        "Two block digests changed places.",
        edits={"part": lambda p: p[:-64] + p[-32:] + p[-64:-32]},
    )
    v(
        "forged",
        "tampered",
        "A holder of the model key encrypted another chunk; its tag holds, its digest does not.",
        edits={"part": forge},
    )
    two = [("a", b"a" * 4096 + b"b" * 4096), *SMALL[1:]]
    v(
        "blocks-swapped",
        "tampered",
        "Two whole blocks changed places, digests along; the root was signed before.",
        files=two,
        edits={"part": lambda p: p[B : 2 * B] + p[:B] + p[2 * B :]},
    )
    v(
        "chunks-swapped",
        "tampered",
        "The author signed a payload whose first two chunks changed places.",
        files=two,
        edits={"payload": lambda p: p[B : 2 * B] + p[:B] + p[2 * B :]},
    )
    v(
        "member-swapped",
        "tampered",
        "The author signed a payload in which two equal-sized files changed places.",
        files=[("a", b"a" * 4096), ("b", b"b" * 4096), *SMALL[1:]],
        edits={"payload": lambda p: p[B : 2 * B] + p[:B] + p[2 * B :]},
    )
    v(
        "last-not-marked",
        "tampered",
        "The last chunk does not say that it is the last.",
        files=two,
        opened=first,
        edits={"plan 0": lambda plan: [(k, at, size, False) for k, at, size, _ in plan]},
    )
    v(
        "last-gone",
        "tampered",
        "The last chunk is gone, the cut falls on a chunk border, and index and root say so too.",
        **gone(two),
    )
    v(
        "counter",
        "tampered",
        "A chunk sealed under another number.",
        files=two,
        opened=first,
        edits={"plan 0": lambda plan: [plan[0], (7, *plan[1][1:])]},
    )
    v("wrong-key", "wrong key", "Another key.", secret=bytes(32))
    v(
        "commitment",
        "wrong key",
        "The key opens everything, but the core commits to another.",
        edits={"fields": put(commitment=sha256(b"x"))},
    )
    whole = sum(len(octets) for _, octets in SMALL)
    v("crc", "tampered", "The author signed a wrong zip checksum.", opened=whole, edits={"fields": put(crc=u(7, 4))})
    v("root", "tampered", "The author signed another root.", edits={"fields": put(payload_root=sha256(b"x"))})
    v(
        "digest-of-member",
        "tampered",
        "The index has another digest of a file.",
        opened=whole,
        edits={"entries": lambda each: [*each[:-1], (0, each[-1][1], each[-1][2], bytes(32))]},
    )


def gone(files: list[tuple[str, bytes]]) -> dict[str, Any]:
    """The index says 4,096 octets; the chunk is sealed as the first of two."""
    kept = [(files[0][0], files[0][1][:4096]), *files[1:]]
    return {"files": kept, "edits": {"plan 0": lambda plan: [(0, plan[0][1], plan[0][2], False)]}}


def forge(part: bytes) -> bytes:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    name = b"payload-forged"
    material = hkdf(sha256(b"key " + name), sha256(b"id " + name), 1, "member", 0, 44)
    chunk = AESGCM(material[:32]).encrypt(material[32:], b"evil" * 1024, bytes(4) + bytes(8) + b"\0")
    return chunk + part[len(chunk) :]


def bad_index() -> None:
    def v(name: str, comment: str, expect: str = "malformed", **changes: Any) -> None:
        vector(f"index-{name}", expect, comment, **changes)

    v("flipped", "One bit of the encrypted index, signed.", "tampered", edits={"sealed index": flip(9)})
    v("padding-not-zero", "Padding that is not zero.", edits={"index": lambda o: o[:-1] + b"\1"})
    v("padding-more", "A page of padding more than needed.", edits={"index": lambda o: o + bytes(512)})
    v("count-0", "No entry.", edits={"index": lambda o: bytes(512)})
    v("count-more", "An entry more announced.", edits={"index": lambda o: u(4, 4) + o[4:]})
    v("count-huge", "Four thousand million entries.", edits={"index": lambda o: u(2**32 - 1, 4) + o[4:]})
    v("type-2", "An entry of an unknown type.", edits={"entries": lambda e: [*e[:-1], (2, *e[-1][1:])]})
    v("two-paddings", "Two padding entries.", padding=5, edits={"entries": lambda e: [*e, e[-1]]})
    v("padding-first", "A file follows the padding.", padding=5, edits={"entries": lambda e: [e[-1], *e[:-1]]})
    v(
        "padding-named",
        "A padding entry with a name.",
        padding=5,
        edits={"entries": lambda e: [*e[:-1], (1, b"x", 5, bytes(32))]},
    )
    v("only-padding", "Padding and no file.", padding=5, edits={"entries": lambda e: [e[-1]]})
    v("size-huge", "A file of 2^45 octets.", edits={"entries": lambda e: [(0, e[0][1], 2**45, e[0][3]), *e[1:]]})
    v(
        "length",
        "Sizes that do not add up to the payload.",
        edits={"entries": lambda e: [(0, e[0][1], e[0][2] - 1, e[0][3]), *e[1:]]},
    )
    v("name-twice", "One name twice.", files=[SMALL[0], SMALL[1], SMALL[1]])
    v("name-case", "Two names that differ in case only.", files=[*SMALL, ("Handler.py", b"")])
    v("name-folder", "A file whose name is another one's folder.", files=[*SMALL, ("mar-inf", b"")])
    for word, name in {
        "empty": "", "dotdot": "../handler.py", "inner-dotdot": "a/../b", "dot": "./a", "absolute": "/etc/passwd",
        "slashes": "a//b", "trailing-slash": "a/", "backslash": "a\\b", "colon": "c:a", "nul": "a\0b",
        "newline": "a\nb", "escape": "a\x1b[2Jb", "c1": "a\x85b", "nfd": "e\u0301.pt",
        "own-folder": "SEALED-INF/header",
        "own-folder-case": "sealed-inf/x", "component-256": "n" * 256, "surrogate": "a\ud800b",
    }.items():  # fmt: skip
        v(f"name-{word}", f"The name {ascii(name)[:60]}.", **named(name))
    v("name-1025", "A name of 1,025 octets.", **named("/".join(["n" * 204] * 5) + "n"))


def expand(files: dict[str, bytes], folder: Path) -> Path:
    if "" in files:
        path = folder / "archive"
        path.write_bytes(files[""])
        return path
    for name, octets in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(octets)
    return folder


def plainly(each: dict[str, Any]) -> tuple[str, str]:
    """What the plain reader says: the word, and the hash of what it released."""
    fields, (how, secret) = each["fields"], each["opener"]
    released: list[bytes] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            plain = Plain(expand(each["files"], Path(folder)))
            authors = [(int(line[0]), bytes.fromhex(line[2:])) for line in each["authors"]]
            plain.verify(authors, fields["now"], {"ed25519": 1, "hybrid": 2}[fields["demand"]])
            plain.check_list()
            key = bytes.fromhex(secret) if how == "key" else None
            octets = secret.encode() if how == "passphrase" else bytes.fromhex(secret)
            plain.unlock(key, None if key is not None else (how, octets))
            plain.read(released)
            plain.check_payload()
        except Refused as error:
            return error.word, sha256(b"".join(released)).hex()
    return "success", sha256(b"".join(released)).hex()


def body(files: dict[str, bytes]) -> bytes:
    if "" in files:
        return zlib.compress(files[""], 9)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, octets in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(octets)
            tar.addfile(info, io.BytesIO(octets))
    return zlib.compress(stream.getvalue(), 9)


def main() -> None:
    for chapter in (good, bad_core, bad_signature, bad_clear, bad_outer, bad_slots, bad_payload, bad_index):
        chapter()
    wrong = 0
    for name, each in made.items():
        found = plainly(each)
        if found != (each["fields"]["expect"], each["fields"]["released"]):
            wrong += 1
            print(f"{name}: expected {each['fields']['expect']}, the plain reader says {found[0]}")
    if wrong:
        sys.exit(1)
    for old in HERE.glob("*.vector"):
        old.unlink()
    for name, each in made.items():
        (HERE / f"{name}.vector").write_bytes("\n".join(each["lines"]).encode() + b"\n\n" + body(each["files"]))
    print(f"{len(made)} vectors")


if __name__ == "__main__":
    assert labelled
    main()
