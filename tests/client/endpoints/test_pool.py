"""Many servers behind one client: real requests to simulated servers that die, hang, are slow, join and leave."""

from __future__ import annotations

import asyncio
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_llm_stage import AsyncHTTPClient, LLMStage
from nemo_llm_stage.client.endpoint_status import EndpointStatus
from nemo_llm_stage.client.endpoints.address import parse_base_url
from nemo_llm_stage.client.endpoints.affinity import affinity
from nemo_llm_stage.client.endpoints.member import Lease
from nemo_llm_stage.client.endpoints.pool import EndpointPool
from nemo_llm_stage.client.endpoints.share import WorkerPlace
from nemo_llm_stage.client.endpoints.state import EndpointPolicy
from nemo_llm_stage.core import Outcome
from nemo_llm_stage.errors import ConfigError, ConnectionFailedError
from nemo_llm_stage.testing import Fault, SimulatedServer

QUICK = EndpointPolicy(first_rest_s=0.1, max_rest_s=0.2, silent_after_s=0.4, tick_s=0.02, poll_s=0.02)


@contextmanager
def servers(num: int, **settings: Any) -> Iterator[list[SimulatedServer]]:
    """Servers that take 10 ms for an answer."""
    with ExitStack() as stack:
        config = {"service_time_s": 0.01, **settings}
        yield [stack.enter_context(SimulatedServer(**config)) for _ in range(num)]


def client_of(base_url: Any, policy: EndpointPolicy = QUICK, **settings: Any) -> AsyncHTTPClient:
    """A client without retries: what counts as one fails the row."""
    client = AsyncHTTPClient(base_url, **{"max_concurrent_requests": 8, "max_retries": 0, **settings})
    client.endpoint_policy = policy
    return client


class Run:
    """Rows that run while the test does something else."""

    def __init__(self, client: AsyncHTTPClient, num_rows: int, **settings: Any) -> None:
        self.client = client
        self._stage = LLMStage(client=client, model="sim", prompt="{{ text }}", output_column="x", **settings)
        self._reached: dict[int, threading.Event] = {}
        self._num_done = 0
        rows = [{"text": f"row {number}"} for number in range(num_rows)]
        self._future = self._stage.submit(rows, on_done=self._count, order="input")

    def wait_for(self, num_done: int) -> None:
        """Return when so many rows have ended."""
        event = self._reached.setdefault(num_done, threading.Event())
        if self._num_done >= num_done:
            return
        assert event.wait(30.0)

    def outage(self) -> str | None:
        """Why rows wait."""
        outage = self._stage.status().outage
        return None if outage is None else outage.error

    def end(self) -> dict[str, EndpointStatus]:
        """Return how the servers stood at the end of the rows, which are all answered, each by one server."""
        outcomes = self._future.result(30.0)
        statuses = {status.url: status for status in self.client.endpoint_statuses()}
        self._stage.close()
        assert [outcome["x"].error for outcome in outcomes] == [None] * len(outcomes)
        assert sum(status.num_answered for status in statuses.values()) == len(outcomes)
        return statuses

    def _count(self, _: Outcome) -> None:
        self._num_done += 1
        for number, event in list(self._reached.items()):
            if self._num_done >= number:
                event.set()


def until(is_so: Callable[[], object]) -> None:
    """Return when something is so; it comes soon."""
    for _ in range(3000):
        if is_so():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came")


def urls(servers: Sequence[SimulatedServer]) -> list[str]:
    return [server.base_url for server in servers]


def test_each_server_gets_its_own_limit_and_no_more() -> None:
    """The sum of the limits is in flight."""
    with servers(3) as all_of_them:
        run = Run(client_of(urls(all_of_them), max_concurrent_requests=5), 200)
        statuses = run.end()
        assert [server.stats.max_in_flight for server in all_of_them] == [5, 5, 5]
    assert [status.limit for status in statuses.values()] == [5, 5, 5]
    assert {status.state for status in statuses.values()} == {"healthy"}


def test_a_server_named_twice_gets_twice_the_requests() -> None:
    """Its limit is twice as high."""
    with servers(2) as (one, other):
        Run(client_of([one.base_url, one.base_url, other.base_url], max_concurrent_requests=4), 100).end()
        assert (one.stats.max_in_flight, other.stats.max_in_flight) == (8, 4)


def test_the_rows_of_a_dead_server_go_to_others_and_use_up_no_retry() -> None:
    """With no retries at all no row fails, and the dead server rests."""
    with servers(3) as (dies, *others):
        run = Run(client_of([dies.base_url, *urls(others)], EndpointPolicy()), 300, give_up_after_s=0.0)
        run.wait_for(60)
        with dies.outage():
            statuses = run.end()
    assert statuses[dies.base_url].state == "resting"
    assert statuses[dies.base_url].num_failed >= 3
    assert statuses[dies.base_url].reason


def test_a_server_that_comes_back_is_asked_again() -> None:
    """A probe finds out; after it the server gets its share."""
    with servers(2) as (returns, other):
        run = Run(client_of([returns.base_url, other.base_url]), 600, give_up_after_s=0.0)
        run.wait_for(50)
        with returns.outage():
            until(lambda: any(status.state == "resting" for status in run.client.endpoint_statuses()))
        num_before = returns.stats.num_requests
        statuses = run.end()
        assert returns.stats.num_requests > num_before + 10
    assert statuses[returns.base_url].state == "healthy"


def test_a_server_that_joins_the_file_gets_requests(tmp_path: Path) -> None:
    """While the rows run."""
    path = tmp_path / "endpoints.txt"
    with servers(2) as (first, second):
        path.write_text(f"{first.base_url}\n")
        run = Run(client_of(str(path)), 400)
        run.wait_for(50)
        path.write_text(f"{first.base_url}\n{second.base_url}\n")
        run.end()
        assert second.stats.num_requests > 50


def test_a_server_that_leaves_the_file_gets_no_more_requests(tmp_path: Path) -> None:
    """What is in flight there ends."""
    path = tmp_path / "endpoints.txt"
    with servers(2) as both:
        path.write_text("\n".join(urls(both)))
        run = Run(client_of(str(path)), 600)
        run.wait_for(50)
        path.write_text(both[0].base_url)
        until(lambda: any(status.state == "gone" for status in run.client.endpoint_statuses()))
        num_before = both[1].stats.num_requests
        statuses = run.end()
        assert both[1].stats.num_requests == num_before
    assert statuses[both[1].base_url].num_failed == 0


def test_rows_wait_while_the_file_is_empty(tmp_path: Path) -> None:
    """People see why; then the rows go on."""
    path = tmp_path / "endpoints.txt"
    with servers(1) as (server,):
        path.write_text(server.base_url)
        run = Run(client_of(str(path)), 300, give_up_after_s=0.0)
        run.wait_for(20)
        path.write_text("# none for now\n")
        until(lambda: "names no server" in (run.outage() or ""))
        path.write_text(server.base_url)
        run.end()


def test_an_empty_file_at_the_start_is_an_error(tmp_path: Path) -> None:
    """It names the file."""
    path = tmp_path / "endpoints.txt"
    path.write_text("# nothing\n")
    with pytest.raises(ConfigError, match=r"endpoints\.txt.*names no server"):
        client_of(str(path)).setup()


def test_a_server_that_never_answers_is_found_by_its_peers() -> None:
    """Its requests are cancelled and sent elsewhere, long before the timeout; with no retries none fails."""
    with servers(3) as (hangs, *others):
        hangs.faults = [Fault("hang")]
        run = Run(client_of([hangs.base_url, *urls(others)]), 300, give_up_after_s=0.0)
        statuses = run.end()
        assert hangs.stats.num_requests <= 8 + 10
    assert statuses[hangs.base_url].num_answered == 0
    assert statuses[hangs.base_url].is_down
    assert "no answer" in (statuses[hangs.base_url].reason or "")


@pytest.mark.slow
def test_a_request_that_is_slow_everywhere_is_answered_in_the_end() -> None:
    """It is moved twice at most, though each server in turn is silent beside its peers."""

    def seconds(body: dict[str, Any]) -> float:
        return 1.0 if "row 0" in str(body) and body["messages"][0]["content"] == "row 0" else 0.01

    with servers(3, service_time_s=seconds) as all_of_them:
        run = Run(client_of(urls(all_of_them), max_concurrent_requests=1), 400, give_up_after_s=0.0)
        run.end()
        sends = [sum(r.body["messages"][0]["content"] == "row 0" for r in s.requests) for s in all_of_them]
    assert 1 <= sum(sends) <= 3


def test_a_slow_server_gets_few_requests_and_is_told_by_its_latencies() -> None:
    """It answers many times slower, so that its permits come free less often."""
    with servers(1, service_time_s=0.3) as (slow,), servers(2) as others:
        patient = replace(QUICK, silent_after_s=30.0)
        statuses = Run(client_of([slow.base_url, *urls(others)], patient), 400).end()
    slowest = statuses.pop(slow.base_url)
    assert slowest.num_answered * 2 < min(status.num_answered for status in statuses.values())
    assert (slowest.p50_s or 0) > 4 * max(status.p50_s or 0 for status in statuses.values())


def test_where_no_server_is_well_all_are_asked() -> None:
    """A request of a direct user fails after its own retries, in no time."""

    async def scenario() -> None:
        client = client_of(["http://127.0.0.1:9", "http://127.0.0.1:10"])
        for _ in range(5):
            with pytest.raises(ConnectionFailedError):
                await client.query_model(messages=[{"role": "user", "content": "x"}], model="sim")
        assert {status.state for status in client.endpoint_statuses()} == {"resting"}
        await client.aclose()

    asyncio.run(scenario())


def test_a_waiting_request_can_be_cancelled() -> None:
    """No permit is lost."""

    async def scenario(server: SimulatedServer) -> None:
        client = client_of(server.base_url, max_concurrent_requests=1)
        async with client.limit.permit():
            waiting = asyncio.create_task(client.limit.__aenter__())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        assert (client.limit.in_flight, client.limit.num_waiting) == (0, 0)
        async with client.limit.permit():
            assert client.limit.in_flight == 1

    with servers(1) as (server,):
        asyncio.run(scenario(server))


def test_two_workers_own_different_servers_and_share_one() -> None:
    """Each asks its own; of a single server each has half the limit."""
    asked: list[str] = []
    with servers(4) as all_of_them, servers(1) as (single,):
        for index in range(2):
            client = client_of(urls(all_of_them), EndpointPolicy())
            client.take_place(WorkerPlace(index, 2))
            assert client.total_limit(WorkerPlace(index, 2)) == 16
            asked += Run(client, 60).end()
            shared = client_of(single.base_url)
            shared.take_place(WorkerPlace(index, 2))
            Run(shared, 60).end()
        assert sorted(asked) == sorted(urls(all_of_them))
        assert sum(server.stats.num_requests for server in all_of_them) == 120
        assert single.stats.max_in_flight == 4


def test_a_worker_whose_own_servers_are_dead_asks_others() -> None:
    """No row waits for a server of its own."""
    with servers(2) as both:
        clients = [client_of(urls(both), EndpointPolicy()) for _ in range(2)]
        for client in clients:
            client.take_place(WorkerPlace(0, 2))
        statuses = Run(clients[0], 30).end()
        own, other = sorted(both, key=lambda server: server.base_url not in statuses)
        assert other.stats.num_requests == 0
        with own.outage():
            Run(clients[1], 30, give_up_after_s=0.0).end()
        assert other.stats.num_requests == 30


def test_a_failure_at_an_own_server_stays_with_it() -> None:
    """A request that came to another worker's server would come on top of its limit."""
    with servers(2, faults=[Fault("drop", contains="3", attempts=1)]) as both:
        clients = [client_of(urls(both), EndpointPolicy(), max_retries=1, base_delay=0.01) for _ in range(2)]
        for index, client in enumerate(clients):
            client.take_place(WorkerPlace(index, 2))
        runs = [Run(client, 29) for client in clients]
        assert [len(run.end()) for run in runs] == [1, 1]
        assert [server.stats.num_requests for server in both] == [32, 32]


def test_an_outage_of_the_own_servers_brings_others_one_request_at_a_time() -> None:
    """It comes on top of their limit, which their worker uses up."""
    with servers(2) as both:
        clients = [client_of(urls(both)) for _ in range(3)]
        for index, client in enumerate(clients):
            client.take_place(WorkerPlace(index % 2, 2))
        first = set(Run(clients[0], 5).end())
        own, other = sorted(both, key=lambda server: server.base_url not in first)
        with own.outage():
            runs = [Run(clients[1], 200), Run(clients[2], 20, give_up_after_s=0.0)]
            assert [other.base_url in run.end() for run in runs] == [True, True]
        assert other.stats.max_in_flight == 9


def test_requests_of_one_group_go_to_one_server_while_it_has_room() -> None:
    """Another group may go elsewhere, and a full home is no reason to wait."""

    async def scenario(client: AsyncHTTPClient) -> list[str | None]:
        async def ask(group: int) -> str | None:
            with affinity(group):
                message = {"role": "user", "content": str(group)}
                return (await client.complete(messages=[message], model="sim")).endpoint

        endpoints = [await ask(group) for group in list(range(20)) * 3]
        await asyncio.gather(*(ask(1) for _ in range(24)))
        await client.aclose()
        return endpoints

    with servers(3, service_time_s=0.0) as all_of_them:
        endpoints = asyncio.run(scenario(client_of(urls(all_of_them), EndpointPolicy())))
        assert endpoints[:20] == endpoints[20:40] == endpoints[40:]
        assert len(set(endpoints)) == 3


def test_groups_are_spread_evenly_whatever_the_servers_are_called() -> None:
    """With names of which one got half of all groups when their hashes were checksums."""
    names = ["http://vllm-0.vllm:8000/v1", "http://vllm-1.vllm:8000/v1", "http://vllm-2.vllm:8000/v1"]

    async def scenario(client: AsyncHTTPClient) -> list[int]:
        seen = dict.fromkeys(names, 0)
        for number in range(900):
            with affinity(zlib.crc32(str(number).encode())):
                async with client.limit.permit() as lease:
                    assert isinstance(lease, Lease)
                    seen[lease.member.endpoint.base_url] += 1
        return list(seen.values())

    counts = asyncio.run(scenario(client_of(names, EndpointPolicy())))
    assert max(counts) < 1.25 * min(counts)


def test_rows_that_begin_alike_go_to_one_server() -> None:
    """Most rows of a document go to the server that has it in its cache; all servers work."""
    documents = [chr(65 + number) * 2000 for number in range(12)]
    rows = [{"text": f"{document} {question}"} for question in range(10) for document in documents]
    with servers(3) as all_of_them:
        client = client_of(urls(all_of_them), EndpointPolicy(), max_concurrent_requests=4)  # nobody is silent too long
        stage = LLMStage(client=client, model="sim", prompt="{{ text }}", output_column="x")
        outcomes = stage.submit(rows).result(30.0)
        stage.close()
        seen = [[request.body["messages"][0]["content"][0] for request in server.requests] for server in all_of_them]
    assert all(outcome["x"].error is None for outcome in outcomes)
    at_home = sum(max(letters.count(document[0]) for letters in seen) for document in documents)
    assert at_home >= 0.55 * len(rows)  # by chance it would be 0.48
    assert min(map(len, seen)) >= 0.15 * len(rows)


def test_servers_that_have_left_are_forgotten_in_the_end() -> None:
    """A list that changes for weeks does not fill the memory."""

    async def scenario() -> int:
        client = client_of("http://127.0.0.1:1")
        pool = client.limit
        assert isinstance(pool, EndpointPool)
        for number in range(1000):
            pool.update([parse_base_url(f"http://10.0.{number // 250}.{number % 250 + 1}:8000")])
        return len(pool.statuses())

    assert asyncio.run(scenario()) <= 300


def test_a_limit_that_was_adapted_stays_when_the_list_changes() -> None:
    """Only a server whose share changes gets a new limit."""

    async def scenario() -> list[int]:
        client = client_of(["http://127.0.0.1:1", "http://127.0.0.1:2"])
        pool = client.limit
        assert isinstance(pool, EndpointPool)
        pool.members[0].limit.resize(3)
        pool.update([parse_base_url(f"http://127.0.0.1:{port}") for port in (1, 2, 3)])
        assert pool.max_concurrent_requests == 3 + 8 + 8
        return [member.limit.max_concurrent_requests for member in pool.members]

    assert asyncio.run(scenario()) == [3, 8, 8]
