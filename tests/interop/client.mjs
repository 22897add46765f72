// A client of the channel that shares no code with strongroom: HPKE from @hpke/core, X-Wing from its
// module, Binary HTTP from bhttp-js, HKDF and AES from Node. What is written here is docs/protocol.md.
//
//   node client.mjs ENDPOINT FORM KEM BODY [MEDIA-TYPE]    FORM: single | chunked    KEM: xwing | x25519
//
// Prints one JSON object: what came back, and for streams the pieces as they opened. It does not judge
// evidence; it checks that the nonce came back.

import { createDecipheriv, hkdfSync, randomBytes } from "node:crypto";
import { Aes128Gcm, Aes256Gcm, CipherSuite, DhkemX25519HkdfSha256, HkdfSha256 } from "@hpke/core";
import { XWing } from "@hpke/hybridkem-x-wing";
import { BHttpDecoder, BHttpEncoder } from "bhttp-js";

const [endpoint, form, kemName, body, mediaType = "text/plain"] = process.argv.slice(2);
const utf8 = new TextEncoder();
const KEMS = {
  xwing: { id: 0x647a, make: () => new XWing(), enc: 1120, pk: 1216 },
  x25519: { id: 0x0020, make: () => new DhkemX25519HkdfSha256(), enc: 32, pk: 32 },
};
const AEADS = { 1: { make: () => new Aes128Gcm(), nk: 16 }, 2: { make: () => new Aes256Gcm(), nk: 32 } };
const SIZES = { 0x647a: 1216, 0x0020: 32, 0x0010: 65 };

function fail(message) {
  throw new Error(message);
}

// -- keys: application/ohttp-keys, RFC 9458 section 3 ------------------------------------------

function parseKeys(list) {
  const configs = [];
  for (let at = 0; at < list.length; ) {
    const size = list.readUInt16BE(at);
    const config = list.subarray(at + 2, at + 2 + size);
    if (config.length !== size) fail("key list: wrong length");
    at += 2 + size;
    const kem = config.readUInt16BE(1);
    if (!(kem in SIZES)) continue;
    const end = 3 + SIZES[kem];
    const pairs = config.subarray(end + 2);
    if (pairs.length !== config.readUInt16BE(end) || pairs.length % 4) fail("key list: wrong pairs");
    configs.push({ id: config[0], kem, pk: config.subarray(3, end), kdf: pairs.readUInt16BE(0), aead: pairs.readUInt16BE(2) });
  }
  return configs;
}

async function fetchKeys() {
  const nonce = randomBytes(32).toString("base64url");
  const answer = await fetch(endpoint, {
    method: "POST",
    headers: { "content-type": "application/vnd.strongroom.keys-request+json" },
    body: JSON.stringify({ nonce }),
  });
  const bundle = await answer.json();
  if (bundle.nonce !== nonce) fail("the bundle is not for this nonce");
  return parseKeys(Buffer.from(bundle.ohttp_keys, "base64url"));
}

// -- variable-length integers, RFC 9000 section 16 ------------------------------------------------

function varint(value) {
  if (value < 64) return Buffer.from([value]);
  if (value < 16384) return Buffer.from([0x40 | (value >> 8), value & 255]);
  return Buffer.from([0x80 | (value >> 24), (value >> 16) & 255, (value >> 8) & 255, value & 255]);
}

function readVarint(octets, at) {
  const size = 1 << (octets[at] >> 6);
  let value = octets[at] & 0x3f;
  for (let place = 1; place < size; place++) value = value * 256 + octets[at + place];
  return [value, at + size];
}

// -- one exchange ------------------------------------------------------------------------------

const labels = {
  single: ["message/bhttp request", "message/bhttp response", "message/ohttp-req", "message/ohttp-res"],
  chunked: [
    "message/bhttp chunked request",
    "message/bhttp chunked response",
    "message/ohttp-chunked-req",
    "message/ohttp-chunked-res",
  ],
}[form];

const kem = KEMS[kemName];
const config = (await fetchKeys()).find((each) => each.kem === kem.id) ?? fail(`no ${kemName} key on offer`);
const aead = AEADS[config.aead];
const suite = new CipherSuite({ kem: kem.make(), kdf: new HkdfSha256(), aead: aead.make() });
const header = Buffer.alloc(7);
header.writeUInt8(config.id, 0);
header.writeUInt16BE(config.kem, 1);
header.writeUInt16BE(config.kdf, 3);
header.writeUInt16BE(config.aead, 5);

const request = new Request(endpoint, { method: "POST", headers: { "content-type": mediaType }, body });
const plain = Buffer.from(await new BHttpEncoder().encodeRequest(request));

const recipientPublicKey = await suite.kem.deserializePublicKey(new Uint8Array(config.pk));
const info = Buffer.concat([utf8.encode(labels[0]), Buffer.from([0]), header]);
const context = await suite.createSenderContext({ recipientPublicKey, info: new Uint8Array(info) });
const enc = Buffer.from(context.enc);
if (enc.length !== kem.enc) fail("enc has another length");

async function seal(octets, aad) {
  return Buffer.from(await context.seal(new Uint8Array(octets), utf8.encode(aad)));
}

let sealed;
if (form === "single") {
  sealed = [await seal(plain, "")];
} else {
  const middle = plain.length >> 1;
  sealed = [];
  for (const piece of [plain.subarray(0, middle), plain.subarray(middle)]) {
    const chunk = await seal(piece, "");
    sealed.push(varint(chunk.length), chunk);
  }
  sealed.push(Buffer.from([0]), await seal(Buffer.alloc(0), "final"));
}

const answer = await fetch(endpoint, {
  method: "POST",
  headers: { "content-type": labels[2] },
  body: Buffer.concat([header, enc, ...sealed]),
});
const octets = Buffer.from(await answer.arrayBuffer());
if (answer.status !== 200 || answer.headers.get("content-type") !== labels[3]) {
  fail(`answered ${answer.status} ${answer.headers.get("content-type")}`);
}

const size = Math.max(12, aead.nk);
const secret = Buffer.from(await context.export(utf8.encode(labels[1]), size));
const nonce = octets.subarray(0, size);
const salt = Buffer.concat([enc, nonce]);
const key = Buffer.from(hkdfSync("sha256", secret, salt, "key", aead.nk));
const base = Buffer.from(hkdfSync("sha256", secret, salt, "nonce", 12));

function open(octets, counter, aad) {
  const nonce = Buffer.from(base);
  nonce.writeUInt32BE((nonce.readUInt32BE(8) ^ counter) >>> 0, 8);
  const cipher = createDecipheriv(`aes-${aead.nk * 8}-gcm`, key, nonce);
  cipher.setAAD(utf8.encode(aad));
  cipher.setAuthTag(octets.subarray(octets.length - 16));
  return Buffer.concat([cipher.update(octets.subarray(0, octets.length - 16)), cipher.final()]);
}

const pieces = [];
if (form === "single") {
  pieces.push(open(octets.subarray(size), 0, ""));
} else {
  for (let at = size, counter = 0; ; counter++) {
    const [length, start] = readVarint(octets, at);
    if (length === 0) {
      pieces.push(open(octets.subarray(start), counter, "final"));
      break;
    }
    pieces.push(open(octets.subarray(start, start + length), counter, ""));
    at = start + length;
  }
}
const response = new BHttpDecoder().decodeResponse(new Uint8Array(Buffer.concat(pieces)).buffer);
console.log(
  JSON.stringify({
    status: response.status,
    type: response.headers.get("content-type"),
    body: await response.text(),
    pieces: pieces.map((piece) => piece.length),
  }),
);
