"""A gateway that is told to stop takes nothing new, says so, and ends what it has."""

import asyncio

import pytest

from common.errors import UnavailableError
from services.gateway.http.drain import Drain
from tests.gateway.conftest import Gateway, StartGateway, free_port, until


class TestWhenItIsOver:
    """With a clock that is moved by hand."""

    def setup_method(self) -> None:
        self.now = 50.0

    def drain(self, grace_seconds: float, delay_seconds: float = 0) -> Drain:
        return Drain(grace_seconds, delay_seconds, lambda: self.now)

    async def test_never_before_it_begins(self) -> None:
        drain = self.drain(0)
        assert not drain.draining
        assert not drain.over
        drain.check()

    async def test_as_soon_as_nothing_runs(self) -> None:
        drain = self.drain(30)
        with drain.request():
            drain.begin()
            assert not drain.over
            with pytest.raises(UnavailableError, match="draining"):
                drain.check()
        assert drain.over

    async def test_after_the_grace_time_whatever_runs(self) -> None:
        drain = self.drain(30)
        with drain.request():
            drain.begin()
            self.now += 29
            assert not drain.over
            self.now += 1
            assert drain.over

    @pytest.mark.parametrize("grace_seconds", [30, 0])
    async def test_not_before_load_balancers_had_time_to_see_it(self, grace_seconds: float) -> None:
        drain = self.drain(grace_seconds, delay_seconds=5)
        drain.begin()
        self.now += 4
        assert not drain.over
        self.now += 1
        assert drain.over

    async def test_requests_are_served_until_load_balancers_had_time_to_see_it(self) -> None:
        drain = self.drain(30, delay_seconds=5)
        drain.begin()
        self.now += 4
        assert drain.draining
        drain.check()
        self.now += 1
        with pytest.raises(UnavailableError, match="draining"):
            drain.check()

    async def test_a_second_signal_waits_for_no_load_balancer(self) -> None:
        drain = self.drain(30, delay_seconds=5)
        drain.begin()
        drain.hurry()
        assert drain.over
        with pytest.raises(UnavailableError, match="draining"):
            drain.check()


async def test_new_requests_are_refused_and_it_says_so(gateway: Gateway) -> None:
    assert "connection" not in (await gateway.http.get("/health")).headers
    gateway.app.state.drain.begin()
    for response in (await gateway.complete(), await gateway.chat(stream=True)):
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "service_unavailable"
        assert response.headers["retry-after"] == "1"
        assert response.headers["connection"] == "close"
    assert not gateway.decode.requests

    ready = await gateway.http.get("/ready")
    assert ready.status_code == 503
    assert ready.json()["status"] == "draining"
    assert (await gateway.http.get("/ready?workers=false")).status_code == 503
    assert (await gateway.http.get("/health")).status_code == 200, "it is alive, and must not be killed for it"


async def test_what_runs_is_answered_whole(gateway: Gateway) -> None:
    let_go = asyncio.Event()
    gateway.decode.script.insert(1, let_go)
    running = asyncio.create_task(gateway.complete(stream=True))

    async def started() -> bool:
        return bool(gateway.decode.requests)

    await until(started)
    gateway.app.state.drain.begin()
    assert not gateway.app.state.drain.over
    let_go.set()
    assert (await running).text.endswith("data: [DONE]\n\n")
    assert gateway.app.state.drain.over


async def test_draining_is_said_even_where_workers_are_missing(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(prefill_workers=f"127.0.0.1:{free_port()}")
    gateway.app.state.drain.begin()
    ready = (await gateway.http.get("/ready")).json()
    assert (ready["status"], ready["missing"]) == ("draining", ["prefill"])


async def test_while_the_load_balancer_has_not_seen_it_requests_are_answered_and_connections_closed(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(shutdown_delay_seconds=60)
    gateway.app.state.drain.begin()
    assert (await gateway.http.get("/ready")).status_code == 503
    answered = await gateway.complete()
    assert answered.status_code == 200
    assert answered.headers["connection"] == "close"
