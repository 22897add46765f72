"""Which of TorchServe's inference paths an inner request names.

The outer URL is the host's word; the inner path is the client's. It must name the model that the
worker serves, or nothing ties the sealed request to it (docs/protocol.md). What TorchServe's frontend
adds to a request on each path was measured on 0.12.0: the `explain` and `url_path` headers, and the
query's parameters on ``/invocations``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

_PATHS = (
    re.compile(r"/(?P<verb>predictions|explanations)/(?P<model>[^/]+)(?:/(?P<version>[^/]+))?(?:/(?P<rest>.*))?"),
    re.compile(r"/v1/models/(?P<model>[^/:]+):(?P<verb>predict|explain)"),
    re.compile(r"/v2/models/(?P<model>[^/]+)/(?P<verb>infer|explain)"),
    re.compile(r"/(?P<verb>invocations)"),
)


@dataclass(frozen=True, slots=True)
class Route:
    """A model, perhaps a version, and what the frontend would have added for the handler."""

    model: str
    version: str | None
    headers: dict[str, str] = field(default_factory=dict)
    parameters: tuple[tuple[str, str], ...] = ()


def route_of(path: str) -> Route | None:
    """The route of an inner path with its query, or None where TorchServe has no such path."""
    bare, _, query = path.partition("?")
    for pattern in _PATHS:
        if match := pattern.fullmatch(bare):
            break
    else:
        return None
    named = match.groupdict()
    verb = named["verb"]
    if verb == "invocations":
        parameters = tuple(parse_qsl(query, keep_blank_values=True))
        model = dict(parameters).get("model_name")
        return Route(model, None, parameters=parameters) if model else None
    headers = {"explain": "True" if verb.startswith("expla") else "False"}
    if verb in ("predictions", "explanations"):
        headers["url_path"] = unquote(named.get("rest") or "")
    version = named.get("version")
    return Route(unquote(named["model"]), None if version is None else unquote(version), headers)
