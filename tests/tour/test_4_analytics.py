"""Tour 4: count what happens.

Each call is one round trip. Days are days of UTC.
"""

from datetime import timedelta

from counterseal import Counterseal


async def test_views_and_signatures_of_today(seal: Counterseal) -> None:
    await seal.analytics.track_document_view("request-1", "ada", "example.org")
    await seal.analytics.track_document_view("request-1", "bob")
    await seal.analytics.track_signature_completion("request-1", "ada", "example.org")

    today = await seal.analytics.today()
    assert (today.views, today.signatures) == (2, 1)
    assert (today.requests, today.users) == (1, 2)
    assert (await seal.analytics.today_of("example.org")).views == 1


async def test_how_long_an_endpoint_takes(seal: Counterseal) -> None:
    await seal.analytics.track_api_performance("GET /api/documents", timedelta(milliseconds=10), success=True)
    await seal.analytics.track_api_performance(
        "GET /api/documents", timedelta(milliseconds=30), success=False
    )

    (endpoint,) = await seal.analytics.performance()
    assert (endpoint.calls, endpoint.failures, endpoint.mean) == (2, 1, timedelta(milliseconds=20))


async def test_a_measurement_that_makes_no_sense_is_refused(seal: Counterseal) -> None:
    assert await seal.analytics.track_api_performance("GET /", timedelta(seconds=-1), success=True) is False
