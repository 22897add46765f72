// What a web page does, with the fetch that browsers have too: asks before it sends, reads a stream as it comes.
//
//   node fetch.mjs ENDPOINT ORIGIN BODY
//
// Prints one JSON object: the answer to the preflight, and status, type, pieces and their times of the answer.

const [endpoint, origin, body] = process.argv.slice(2);
const asked = { origin, "access-control-request-method": "POST", "access-control-request-headers": "content-type" };
const preflight = await fetch(endpoint, { method: "OPTIONS", headers: asked });
const answer = await fetch(endpoint, { method: "POST", headers: { origin, "content-type": "application/json" }, body });
const pieces = [];
const began = performance.now();
for await (const piece of answer.body) {
  pieces.push([Math.round(performance.now() - began), Buffer.from(piece).toString()]);
}
console.log(
  JSON.stringify({
    preflight: [preflight.status, preflight.headers.get("access-control-allow-origin")],
    allowed: answer.headers.get("access-control-allow-origin"),
    status: answer.status,
    type: answer.headers.get("content-type"),
    pieces,
  }),
);
