"""How servers are divided among workers."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_llm_stage.client.endpoints.share import WorkerPlace, shares_of

NUMBERS = st.integers(1, 24)


@settings(max_examples=60, deadline=None)
@given(num_urls=NUMBERS, num_workers=NUMBERS, limit=st.integers(1, 64))
def test_every_server_is_used_up_to_its_limit_and_every_worker_has_one(
    num_urls: int, num_workers: int, limit: int
) -> None:
    """The parts of a limit sum up to it, or to one for each worker where it is smaller."""
    urls = [f"http://gpu-{number}:8000/v1" for number in range(num_urls)]
    places = [WorkerPlace(index, num_workers) for index in range(num_workers)]
    shares = [shares_of(urls, place) for place in places]
    assert all(shares)
    for url in urls:
        parts = [share[url].of(limit) for share in shares if url in share]
        assert sum(parts) == max(limit, len(parts))
    numbers = [len(share) for share in shares]
    assert max(numbers) - min(numbers) <= 1


def test_a_new_server_moves_few_others() -> None:
    """Most workers keep what they own."""
    urls = [f"http://gpu-{number}:8000/v1" for number in range(32)]
    places = [WorkerPlace(index, 8) for index in range(8)]
    before = {url: place for place in places for url in shares_of(urls, place)}
    after = {url: place for place in places for url in shares_of([*urls, "http://gpu-new:8000/v1"], place)}
    assert sum(before[url] == after[url] for url in urls) >= 24
