"""Plugins: loaded when named, collected and not first-come, and a veto is a veto whatever else happens."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from strongroom import plugins as plugins_module
from strongroom.errors import AttesterUnavailable, AuditError, PluginInvalid
from strongroom.evidence.simulated import SimulatedVerifier
from strongroom.hookspecs import AttesterOffer, Denial, VerifierOffer, hookimpl
from strongroom.plugins import Plugins, distribution_digest


def offered(monkeypatch, **plugins):
    """Entry points in memory: name → plugin object or an exception to raise at import."""

    class Point:
        def __init__(self, plugin, package):
            self.plugin = plugin
            self.dist = SimpleNamespace(name=package, version="1", read_text=lambda name: None)

        def load(self):
            if isinstance(self.plugin, Exception):
                raise self.plugin
            return self.plugin

    def entry_points(*, group, name):
        found = plugins.get(name, [])
        return [
            Point(each, f"package{number}") for number, each in enumerate(found if isinstance(found, list) else [found])
        ]

    monkeypatch.setattr(plugins_module.metadata, "entry_points", entry_points)
    return Plugins.load(plugins)


class Vetoes:
    def __init__(self, answer):
        self.answer = answer

    @hookimpl
    def strongroom_veto_release(self, verdict, archive, context):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_the_built_ins_are_there_without_a_name():
    plugins = Plugins.load()
    assert {"simulated", "snp", "tdx", "ear"} <= set(plugins.verifiers())
    assert plugins.verifiers()["simulated"].tee == "simulated"
    assert plugins.attester("simulated").tee == "simulated"


@pytest.mark.parametrize("tee", sorted(Plugins().verifiers()))
def test_every_built_in_verifier_loads(tee):
    assert Plugins().verifiers()[tee].tee == tee


def test_nothing_installed_is_loaded_unless_it_is_named(monkeypatch):
    plugins = offered(monkeypatch)
    assert plugins.digests() == ()


def test_a_name_that_nobody_offers_is_an_error():
    with pytest.raises(PluginInvalid, match="no-such-plugin"):
        Plugins.load(["no-such-plugin"])


@pytest.mark.parametrize("answer", [Denial("no"), RuntimeError("broken"), True, "yes", 0, object()])
def test_one_denial_an_exception_or_any_other_answer_keeps_the_key(monkeypatch, answer):
    plugins = offered(monkeypatch, silent=Vetoes(None), strict=Vetoes(answer), later=Vetoes(None))
    denials = plugins.vetoes(None, "a/b/c", {})
    assert [name for name, _ in denials] == ["strict"]
    assert isinstance(denials[0][1], Denial)


def test_no_veto_is_an_empty_answer_and_every_plugin_is_asked(monkeypatch):
    assert offered(monkeypatch, one=Vetoes(None), two=Vetoes(None)).vetoes(None, "a/b/c", {}) == ()
    both = offered(monkeypatch, one=Vetoes(Denial("x")), two=Vetoes(Denial("y"))).vetoes(None, "a/b/c", {})
    assert [denial.reason for _, denial in sorted(both)] == ["x", "y"]


def test_a_plugin_cannot_change_what_another_is_told(monkeypatch):
    class Meddler:
        @hookimpl
        def strongroom_veto_release(self, verdict, archive, context):
            context.clear()

    class Careful:
        @hookimpl
        def strongroom_veto_release(self, verdict, archive, context):
            return None if context == {"tenant": "t"} else Denial("context lost")

    plugins = offered(monkeypatch, meddler=Meddler(), careful=Careful(), another=Meddler())
    assert plugins.vetoes(None, "a/b/c", {"tenant": "t"}) == ()


def test_a_veto_may_leave_out_what_it_does_not_need(monkeypatch):
    class Short:
        @hookimpl
        def strongroom_veto_release(self, archive):
            return Denial("lab") if archive.startswith("lab/") else None

    plugins = offered(monkeypatch, short=Short())
    assert plugins.vetoes(None, "prod/b/c", {}) == ()
    assert plugins.vetoes(None, "lab/b/c", {}) == (("short", Denial("lab")),)


def test_nobody_replaces_a_built_in_verifier(monkeypatch):
    class Impostor:
        @hookimpl
        def strongroom_verifiers(self):
            return [VerifierOffer("snp", SimulatedVerifier)]

    with pytest.raises(PluginInvalid, match="offered already"):
        offered(monkeypatch, impostor=Impostor())


def test_two_plugins_cannot_offer_the_same_attester(monkeypatch):
    class Offers:
        @hookimpl
        def strongroom_attesters(self):
            return [AttesterOffer("abacus", lambda: "", lambda: None)]

    with pytest.raises(PluginInvalid, match="abacus"):
        offered(monkeypatch, one=Offers(), two=Offers())


class Wrapper:
    @hookimpl(wrapper=True)
    def strongroom_veto_release(self, verdict, archive, context):
        yield
        return []


class Pushy:
    @hookimpl(tryfirst=True)
    def strongroom_veto_release(self, verdict, archive, context):
        return None


class Misspelt:
    @hookimpl
    def strongroom_veto_releases(self):
        return None


class Unknown:
    @hookimpl
    def strongroom_veto_release(self, verdict, password):
        return None


class Garbage:
    @hookimpl
    def strongroom_verifiers(self):
        return ["snp"]


class Failing:
    @hookimpl
    def strongroom_attesters(self):
        raise OSError("no device")


@pytest.mark.parametrize(
    "plugin", [Wrapper(), Pushy(), Misspelt(), Unknown(), Garbage(), Failing(), ImportError("x"), [Vetoes(None)] * 2]
)
def test_a_plugin_that_breaks_its_contract_fails_the_start(monkeypatch, plugin):
    with pytest.raises(PluginInvalid):
        offered(monkeypatch, plugin=plugin)


def test_a_verifier_whose_packages_are_missing_says_what_to_install(monkeypatch):
    class Offers:
        @hookimpl
        def strongroom_verifiers(self):
            def load():
                raise ImportError("No module named 'lxml'", name="lxml")

            return [VerifierOffer("abacus", load)]

    with pytest.raises(PluginInvalid, match="lxml"):
        offered(monkeypatch, plugin=Offers()).verifiers()["abacus"]


def test_an_audit_plugin_that_fails_fails_the_action(monkeypatch):
    class Audits:
        @hookimpl
        def strongroom_audit(self, event):
            if event["action"] == "spill":
                raise OSError("disk full")

    plugins = offered(monkeypatch, audits=Audits())
    plugins.audit({"action": "release"})
    with pytest.raises(AuditError):
        plugins.audit({"action": "spill"})


def test_an_attester_is_never_replaced_by_another():
    with pytest.raises(AttesterUnavailable, match="abacus"):
        Plugins.load().attester("abacus")


def test_the_digest_of_a_distribution_names_its_files():
    one = metadata.distribution("pluggy")
    assert distribution_digest(one) == distribution_digest(one)
    changed = SimpleNamespace(
        name=one.name, version=one.version,
        read_text=lambda name: (one.read_text(name) or "").replace("sha256=", "sha256=x"),
    )  # fmt: skip
    assert distribution_digest(changed) != distribution_digest(one)


HOOKS_PAGE = (Path(__file__).parents[2] / "docs" / "hooks.md").read_text()


def block(first_line: str) -> str:
    """The code block of docs/hooks.md that begins with this line."""
    return re.search(rf"```\w+\n({re.escape(first_line)}\n.*?)```", HOOKS_PAGE, re.DOTALL)[1]


def test_a_third_party_tee_is_installed_named_and_judged(tmp_path):
    (tmp_path / "strongroom_abacus.py").write_text(block("# strongroom_abacus.py"))
    (tmp_path / "pyproject.toml").write_text(block("# pyproject.toml"))
    target = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
         "--target", str(target), str(tmp_path)],
        check=True, timeout=120, capture_output=True,
    )  # fmt: skip
    story = f"""
import sys; sys.path.insert(0, {str(target)!r})
from datetime import datetime, timezone
from strongroom.evidence.judge import judge
from strongroom.evidence.policy import Policy
from strongroom.evidence.types import Endorsements, Evidence
from strongroom.plugins import Plugins
assert "abacus" not in Plugins.load().verifiers()
plugins = Plugins.load(["abacus"])
policy = Policy.parse('name = "beads"\\n[abacus]\\nbeads = 7', plugins.verifiers())
evidence = Evidence("abacus", {{"beads": 7, "report_data": "ab" * 32}})
verdict = judge(evidence, binding=b"\\xab" * 32, endorsements=Endorsements(), policy=policy,
                now=datetime.now(timezone.utc), verifiers=plugins.verifiers())
digest, = plugins.digests()
print(verdict.claims["beads"], digest.name, len(digest.digest))
"""
    done = subprocess.run([sys.executable, "-c", story], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["7", "abacus", "32"], done.stderr


def test_the_simulated_attester_warns_at_every_use_and_its_evidence_is_judged(capsys):
    from strongroom.attest.simulated import SimulatedAttester, installed_measurement
    from strongroom.evidence.judge import judge
    from strongroom.evidence.policy import Policy
    from strongroom.evidence.types import Endorsements

    plugins = Plugins.load()
    attester = SimulatedAttester(asserted={"role": "test"})
    policy = Policy.parse(
        f'name = "dev"\n[simulated]\nprotects_nothing = true\nmeasurements = ["{installed_measurement().hex()}"]',
        plugins.verifiers(),
    )
    for _ in range(2):
        evidence = attester.evidence(b"\x05" * 48)
        assert "can be forged by anyone" in capsys.readouterr().err
    verdict = judge(
        evidence, binding=b"\x05" * 48, endorsements=Endorsements(), policy=policy, now=datetime.now(UTC),
        verifiers=plugins.verifiers(),
    )  # fmt: skip
    assert verdict.claims["role"] == "test"


def test_report_data_that_does_not_fit_is_refused_by_the_simulated_attester():
    from strongroom.attest.simulated import SimulatedAttester

    for octets in (b"", bytes(65)):
        with pytest.raises(AttesterUnavailable):
            SimulatedAttester().evidence(octets)
