import math
from datetime import UTC, datetime, timedelta

import pytest
import trustme

from common.certificate_expiry import first_expiry


def issued(ends: datetime) -> bytes:
    return trustme.CA().issue_cert("service", not_after=ends).cert_chain_pems[0].bytes()


@pytest.mark.parametrize("year", [2026, 2049, 2050, 2126])
def test_when_a_certificate_ends(year: int) -> None:
    ends = datetime(year, 7, 14, 3, 59, 58, tzinfo=UTC)
    assert first_expiry([issued(ends)]) == ends.timestamp()


def test_the_first_of_all_counts_wherever_it_is() -> None:
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    late = issued(soon + timedelta(days=300))
    assert first_expiry([late, late + issued(soon)]) == soon.timestamp()


def test_without_a_certificate_nothing_ends() -> None:
    assert first_expiry([]) == math.inf
