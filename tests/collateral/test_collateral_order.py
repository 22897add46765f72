"""Nothing takes a revocation back: what is older than what is kept never takes its place, wherever it comes from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from collateral.test_collateral_cache import FMSPC_TEXT, HOUR, Clock, trusting
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from doubles.amd_keys import NOW as AMD_NOW
from doubles.amd_keys import PSS, amd_keys
from doubles.dcap_platform import NOW, PretendIntel
from doubles.nvidia_device import PretendNvidia
from strongroom.collateral.cache import EndorsementCache
from strongroom.collateral.store import Entry, Store
from strongroom.collateral.trial import Judged, judge_endorsement
from strongroom.collateral.trusted import Trusted
from strongroom.collateral.wanted import Wanted, status_of
from strongroom.errors import CollateralUnavailable

DCAP = Wanted(f"dcap/tdx/{FMSPC_TEXT}/platform", "collateral")
LIST = Wanted("amd-crl/vcek/Milan", "crl")


@dataclass
class Place:
    """A source that has one thing, or one trouble."""

    name: str
    octets: bytes | Exception | None
    asked: int = 0

    def fetch(self, wanted: Wanted) -> bytes | None:
        self.asked += 1
        if isinstance(self.octets, Exception):
            raise self.octets
        return self.octets


@pytest.fixture(scope="module")
def intel() -> PretendIntel:
    return PretendIntel()


@pytest.fixture(scope="module")
def amd():
    return amd_keys("Milan")


def crl_of(amd, number: int | None, *, hours: float = 0) -> bytes:
    begin = AMD_NOW - timedelta(days=1) + timedelta(hours=hours)
    builder = x509.CertificateRevocationListBuilder().issuer_name(amd.ark.certificate.subject)
    builder = builder.last_update(begin).next_update(AMD_NOW + timedelta(days=30))
    if number is not None:
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    return builder.sign(amd.ark.key, hashes.SHA384(), rsa_padding=PSS).public_bytes(Encoding.DER)


@pytest.fixture
def amd_cache(amd, tmp_path):
    trusted = Trusted(amd=lambda product, kind: (amd.ask.certificate, amd.ark.certificate))

    def cache_of(*places: Place, later: timedelta = timedelta()) -> EndorsementCache:
        return EndorsementCache(Store(tmp_path / "store"), places, trusted=trusted, clock=Clock(AMD_NOW + later))

    return cache_of


@pytest.mark.parametrize("numbers", [(11, 12), (None, None), (11, None), (None, 12)])
def test_a_nearer_place_with_an_older_list_is_passed_over(amd, amd_cache, numbers):
    old, new = crl_of(amd, numbers[0]), crl_of(amd, numbers[1], hours=2)
    assert amd_cache(Place("vendor", new)).obtain(LIST).entry.octets == new
    near, vendor = Place("bundle", old), Place("vendor", new)
    found = amd_cache(near, vendor, later=25 * HOUR).obtain(LIST)
    assert (found.entry.octets, found.source, near.asked) == (new, "vendor", 1)


def test_where_only_older_ones_answer_what_is_kept_stays_and_nobody_is_asked_again_at_once(amd, amd_cache):
    new = crl_of(amd, 12, hours=2)
    amd_cache(Place("vendor", new)).obtain(LIST)
    near = Place("bundle", crl_of(amd, 11))
    cache = amd_cache(near, later=25 * HOUR)
    for _ in range(3):
        found = cache.obtain(LIST)
        assert (found.entry.octets, found.source) == (new, "store")
    assert near.asked == 1
    found = cache.obtain(LIST, anew=True)  # by hand too
    assert (found.entry.octets, found.source, near.asked) == (new, "store", 2)


def test_the_number_decides_before_the_date(amd, amd_cache):
    amd_cache(Place("vendor", crl_of(amd, 12))).obtain(LIST)
    assert amd_cache(Place("late", crl_of(amd, 11, hours=5))).obtain(LIST, anew=True).source == "store"
    assert amd_cache(Place("next", crl_of(amd, 13))).obtain(LIST, anew=True).source == "next"


def test_a_bundle_that_is_imported_brings_nothing_older(amd, amd_cache):
    cache = amd_cache(Place("vendor", crl_of(amd, 12)))
    kept = cache.obtain(LIST)
    older = replace(kept.entry, octets=crl_of(amd, 11))
    assert cache.take_in([older]) == ([], [f"{LIST.name}: older than what is kept"])
    assert cache.store.get(LIST.name) == kept.entry
    assert [each.entry for each in cache.take_in([kept.entry])[0]] == [kept.entry]


@pytest.mark.parametrize("part", ["TCB number", "TCB date", "QE identity", "root CRL", "PCK CRL"])
def test_no_part_of_intels_collateral_goes_back(intel, tmp_path, part):
    clock = Clock(NOW)
    today = intel.collateral(tdx=True)
    earlier = {
        "TCB number": {"tcb_info": intel.tcb_info(tdx=True, tcbEvaluationDataNumber=17)},
        "TCB date": {"tcb_info": intel.tcb_info(tdx=True, issueDate="2026-05-19T00:00:00Z")},
        "QE identity": {"qe_identity": intel.qe_identity(tdx=True, tcbEvaluationDataNumber=16)},
        "root CRL": {"root_ca_crl": intel.crl(intel.root, begin=NOW - 30 * HOUR)},
        "PCK CRL": {"pck_crl": intel.crl(intel.pck_ca, begin=NOW - 30 * HOUR)},
    }[part]
    place = Place("pccs", today)
    trusted = Trusted(intel=intel.root.certificate)
    cache = EndorsementCache(Store(tmp_path), [place], trusted=trusted, clock=clock)
    cache.obtain(DCAP)
    place.octets = intel.collateral(tdx=True, **earlier)
    assert judge_endorsement(DCAP, place.octets, NOW, trusted).expires > NOW  # it would hold by itself
    assert cache.obtain(DCAP, anew=True).entry.octets == today


def test_an_answer_that_says_revoked_is_not_replaced_by_an_older_good_one(tmp_path):
    nvidia = PretendNvidia()
    [wanted] = status_of((nvidia.identity.certificate, nvidia.root.certificate))
    good = nvidia.ocsp(nvidia.identity, nvidia.root, begin=NOW - 30 * HOUR)
    revoked = nvidia.ocsp(nvidia.identity, nvidia.root, revoked=True)
    place = Place("responder", revoked)
    cache = EndorsementCache(Store(tmp_path), [place], trusted=trusting(nvidia), clock=Clock(NOW))
    cache.obtain(wanted)
    place.octets = good
    assert cache.obtain(wanted, anew=True).entry.octets == revoked


def test_what_is_kept_and_expired_stands_in_nobodys_way(intel, tmp_path):
    """Its number is no longer known to be the vendor's last word, and a service that went back must not stop us."""
    clock = Clock(NOW)
    place = Place("pccs", intel.collateral(tdx=True, pck_crl=intel.crl(intel.pck_ca, end=NOW + HOUR)))
    cache = EndorsementCache(Store(tmp_path), [place], trusted=Trusted(intel=intel.root.certificate), clock=clock)
    cache.obtain(DCAP)
    clock.now = NOW + 2 * HOUR
    place.octets = intel.collateral(tdx=True, tcb_info=intel.tcb_info(tdx=True, tcbEvaluationDataNumber=17))
    assert cache.obtain(DCAP).source == "pccs"


def test_parts_that_state_nothing_are_not_compared():
    now = NOW
    assert not Judged(now, ((None, 5),)).older_than(Judged(now, ((7, 5),)))
    assert Judged(now, ((None, 4),)).older_than(Judged(now, ((7, 5),)))
    assert not Judged(now).older_than(Judged(now))
    assert not Judged(now, ((8, 1),)).older_than(Judged(now, ((7, 5),)))


@pytest.mark.parametrize("failure", [RuntimeError("a plugin's own"), PermissionError(), ValueError(), KeyError("x")])
def test_whatever_a_source_raises_what_is_kept_is_used_and_the_next_one_asked(amd, amd_cache, failure):
    new = crl_of(amd, 12)
    amd_cache(Place("vendor", new)).obtain(LIST)
    assert amd_cache(Place("broken", failure), later=25 * HOUR).obtain(LIST).source == "store"
    assert amd_cache(Place("broken", failure), Place("next", new), later=25 * HOUR).obtain(LIST).source == "next"


@pytest.mark.parametrize(
    "name",
    ["vcek/Milan", "vcek/Milan/00/1.2/3", "amd-crl/x", "amd-crl/x/Milan", "amd-crl/vcek/Rome", "dcap/tdx"],
)
def test_a_name_of_another_form_is_refused_and_takes_nothing_else_along(amd, amd_cache, name):
    cache, wanted = amd_cache(), Wanted(name, "role")
    entries = [Entry(each, AMD_NOW, crl_of(amd, 1)) for each in (wanted, LIST)]
    kept, refused = cache.take_in(entries)
    assert ([each.entry.wanted for each in kept], len(refused)) == ([LIST], 1)
    cache.store.put(entries[0])
    assert [bool(trouble) for _, _, trouble in cache.show()].count(True) == 1
    with pytest.raises(CollateralUnavailable):
        cache.obtain(wanted)
