from __future__ import annotations

import pytest

from nemo_llm_stage.testing import SimulatedServer
from nemo_llm_stage.testing.simulator.batching import BlockPool, block_keys
from tests.testing.test_slots import read_status, send_chat, wait_for


def test_equal_beginnings_are_taken_from_the_cache(http_to):
    """The second prompt with the same long beginning reports cached tokens, whole blocks of them."""
    beginning = "The same instructions for every row. " * 20
    with SimulatedServer(scheduler="batching", speedup=1000) as server:
        usages = [http_to(server).chat(beginning + row).json["usage"] for row in ("one", "two")]
        stats = server.stats
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
    assert cached[0] == 0
    assert usages[1]["prompt_tokens"] - 32 < cached[1] < usages[1]["prompt_tokens"]
    assert cached[1] % 16 == 0
    assert cached[1] == stats.cached_tokens


def test_without_prefix_caching_nothing_is_cached(http_to):
    """The switch works."""
    with SimulatedServer(scheduler="batching", speedup=1000, prefix_caching=False) as server:
        for _ in range(2):
            assert http_to(server).chat("x" * 1000).json["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_a_prompt_asked_again_still_computes_its_last_token(http_to):
    """The cache never holds a whole prompt: something must be computed to go on."""
    with SimulatedServer(scheduler="batching", speedup=1000) as server:
        http_connection = http_to(server)
        content = "x" * (64 * 4 - len("user: "))
        http_connection.chat(content)
        usage = http_connection.chat(content).json["usage"]
    assert (usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]) == (64, 48)


def test_a_full_cache_preempts_the_newest_and_loses_nothing():
    """More sequences than fit are preempted and computed again; all get their answers."""
    with SimulatedServer(
        scheduler="batching", max_model_len=512, num_kv_blocks=40, answer_tokens=100, speedup=10, max_num_seqs=16
    ) as server:
        clients = [send_chat(server, f"row {number} " * 10, max_tokens=200) for number in range(16)]
        assert [read_status(client) for client in clients] == [200] * 16
        stats = server.stats
    assert stats.num_preemptions > 0
    assert (stats.running, stats.kv_cache_usage) == (0, 0.0)
    assert stats.output_tokens == 1600


def test_the_step_takes_longer_with_more_sequences():
    """Decoding alone and with others: the simulated time follows the formula."""
    with SimulatedServer(
        scheduler="batching", answer_tokens=50, step_base_s=0.001, step_per_seq_s=0.001, prefill_per_token_s=0.0
    ) as server:
        read_status(send_chat(server, "alone"))
        alone_s = server.stats.busy_slot_s
        for client in [send_chat(server, str(number)) for number in range(10)]:
            read_status(client)
        together_s = server.requests[-1].ended_monotonic_s - server.requests[-1].started_monotonic_s
    assert alone_s > 0.09
    assert together_s > 0.4


def test_long_prompts_take_several_steps():
    """A prompt of 1,000 tokens with a budget of 100 needs ten steps before its first token."""
    with SimulatedServer(
        scheduler="batching", max_num_batched_tokens=100, step_base_s=0.01, prefill_per_token_s=0.0, answer_tokens=1
    ) as server:
        read_status(send_chat(server, "x" * 3994, max_tokens=1))
        assert server.stats.busy_slot_s > 0.09


def test_gauges_move_while_it_runs():
    """KV cache use is above zero with a request running, and zero after."""
    with SimulatedServer(scheduler="batching", answer_tokens=5000) as server:
        with send_chat(server, "x" * 1000):
            wait_for(lambda: server.stats.running == 1)
            assert server.stats.kv_cache_usage > 0
        wait_for(lambda: server.stats.running == 0)
        assert server.stats.kv_cache_usage == 0.0


def test_pool_forgets_the_least_recently_used_and_the_end_of_a_prompt_first():
    """Room is made from the blocks that were idle longest, and the beginning of a prompt stays longest."""
    pool = BlockPool(4)
    for keys in ([1, 2], [3, 4]):
        assert pool.acquire(keys, 2) == 0
        pool.release(keys, 2)
    assert pool.extend(1)
    pool.release([], 1)
    assert pool.acquire([3, 4], 2) == 2
    assert pool.acquire([1, 2], 2) == 1
    assert pool.acquire([5], 1) is None


@pytest.mark.parametrize(("length", "num_keys"), [(1, 0), (64, 0), (65, 1), (128, 1), (129, 2)])
def test_block_keys_leave_the_last_token_out(length, num_keys):
    """Only whole blocks before the last token have a key."""
    assert num_keys == len(block_keys("x" * length, -(-length // 4)))
