"""The attestation token: an EAR as a JWT, signed ES256 (docs/release.md section 5).

The claims come from `strongroom.evidence.ear`; this module signs and verifies. The algorithm is taken
from our key, never from a token's header, and a key that a header carries is never used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from strongroom.broker.jwe import check_tee_key
from strongroom.broker.protocol import TeeKey, parse_tee_key
from strongroom.broker.refusals import Refused
from strongroom.errors import MalformedInput

TOKEN_SECONDS = 300
TOKEN_LIMIT = 1 << 20
"""Characters of one token that we look at."""

ISSUER = "strongroom-broker"


class TokenSigner:
    """Signs and verifies attestation tokens with one P-256 key."""

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self._key = ECKey.import_key(pem)
        public = self._key.as_dict(private=False)
        self.public_jwk = {"kty": "EC", "crv": "P-256", "x": public["x"], "y": public["y"], "alg": "ES256"}
        self._header = {"typ": "JWT", "alg": "ES256", "jwk": self.public_jwk}

    def sign(self, claims: Mapping[str, Any], *, now: float) -> str:
        """The compact JWT; `iat`, `exp` and `iss` are ours."""
        dated = dict(claims) | {"iat": int(now), "exp": int(now) + TOKEN_SECONDS, "iss": ISSUER}
        return jwt.encode(self._header, dated, self._key, algorithms=["ES256"])

    def verify(self, token: str, *, now: float) -> dict[str, Any]:
        """The claims of a token that we signed and that has not expired; raises `Refused`."""
        if len(token) > TOKEN_LIMIT:
            raise Refused.bad_token(f"a token of {len(token)} characters")
        try:
            claims = dict(jwt.decode(token, self._key, algorithms=["ES256"]).claims)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise Refused.bad_token(f"not a token that this broker signed: {type(error).__name__}") from error
        expires = claims.get("exp")
        if not isinstance(expires, int) or now >= expires:
            raise Refused.bad_token("the token has expired")
        return claims


def tee_key_of(claims: Mapping[str, Any]) -> TeeKey:
    """The TEE key in the claims of the CPU's submodule; raises `Refused`."""
    try:
        evidence = claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"]
        key = parse_tee_key(evidence["runtime_data_claims"]["tee-pubkey"])
        check_tee_key(key)
    except (KeyError, TypeError, MalformedInput) as error:
        raise Refused.bad_token("no TEE key in the claims of cpu0") from error
    return key
