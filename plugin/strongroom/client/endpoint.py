"""Which URLs lead to a model, and where the sealed request goes.

The inner request keeps the path that the program wrote, without what a gateway put in front of it. The outer one, and
the question for the keys, go to the model's prediction path, so that one path is all that a gateway has to let
through, and the host does not see which of the model's endpoints was meant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from strongroom.errors import ServerUnsealed

_PATHS = (
    re.compile(r"(?P<front>.*?)/(?:predictions|explanations)/(?P<model>[^/]+)(?:/(?P<version>[^/]+))?(?:/.*)?"),
    re.compile(r"(?P<front>.*?)/v1/models/(?P<model>[^/:]+):(?:predict|explain)"),
    re.compile(r"(?P<front>.*?)/v2/models/(?P<model>[^/]+)/(?:infer|explain)"),
    re.compile(r"(?P<front>.*?)/invocations"),
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model at a server: `origin` (``http://host:8080``), `front` (a path in front, often empty), names."""

    origin: str
    front: str
    model: str
    version: str | None = None

    @classmethod
    def parse(cls, url: str, models: Mapping[str, str] | None = None) -> Endpoint:
        """The endpoint behind a request's URL; raises `ServerUnsealed` where it leads to no model.

        `models` maps a path (``/invocations``, or any path that a gateway rewrites) to a model's name.
        """
        try:
            parts = urlsplit(url)
            known = parts.scheme in ("http", "https") and parts.hostname
        except ValueError:  # brackets, or characters that a host name cannot have
            known = None
        if not known:
            raise ServerUnsealed(
                f"{url!r} is not an http or https URL", hint="for example http://host:8080/predictions/m"
            )
        origin = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        if models and parts.path in models:
            return cls(origin, "", models[parts.path])
        match = _matched(parts.path)
        if match is None:
            raise ServerUnsealed(
                f"{parts.path or '/'} is not a model's endpoint, so there is nobody to seal this request to",
                hint="use a session without the sealed adapter for the server's other endpoints, or map the path",
            )
        named = match.groupdict()
        model, version = named.get("model"), named.get("version")
        if model is None:
            query = parse_qs(parts.query)
            if len(query.get("model_name", [])) != 1:
                raise ServerUnsealed(
                    "/invocations does not say which model is meant",
                    hint='add ?model_name=… or give the adapter models={"/invocations": "name"}',
                )
            return cls(origin, named["front"], query["model_name"][0])
        return cls(origin, named["front"], unquote(model), None if version is None else unquote(version))

    @property
    def url(self) -> str:
        """Where sealed requests and keys requests are posted."""
        version = "" if self.version is None else "/" + quote(self.version, safe="")
        return f"{self.origin}{self.front}/predictions/{quote(self.model, safe='')}{version}"

    def inside(self, target: str) -> str:
        """The path and query that the model sees for a program's `target`: as under the server itself.

        A path that only a gateway knows becomes the model's prediction path, or ``/invocations`` with the model's name.
        """
        path, mark, query = target.partition("?")
        path = path.removeprefix(self.front)
        for pattern in _PATHS[:-1]:
            match = pattern.fullmatch(path)
            if match and not match["front"] and unquote(match["model"]) == self.model:
                return path + mark + query
        if path == "/invocations":
            named = "model_name" in parse_qs(query)
            return (
                path
                + "?"
                + (query if named else "&".join(filter(None, (query, urlencode({"model_name": self.model})))))
            )
        return self.url.removeprefix(self.origin + self.front) + mark + query

    def __str__(self) -> str:
        return self.url


def _matched(path: str) -> re.Match[str] | None:
    """How a path leads to a model: as the server itself would read it, and else behind what a gateway put in front."""
    found = [match for pattern in _PATHS if (match := pattern.fullmatch(path))]
    return next((match for match in found if not match["front"]), found[0] if found else None)
