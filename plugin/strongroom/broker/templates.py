"""The release policies that come along, offered through the same hook as a plugin's.

Every program that loads plugins imports this module, so it knows nothing of the interpreter: that is `rego`'s.
"""

from __future__ import annotations

from importlib import resources

from strongroom.hookspecs import PolicyTemplate, hookimpl

TEMPLATES = ("hardware-only", "measured", "measured-cpu-and-gpu", "development")


def template_text(name: str) -> str:
    """The text of one of `TEMPLATES`."""
    return (resources.files("strongroom.broker") / "policies" / f"{name}.rego").read_text("utf-8")


@hookimpl
def strongroom_policies() -> list[PolicyTemplate]:
    """One offer a template."""
    return [PolicyTemplate(name, "rego", template_text(name)) for name in TEMPLATES]
