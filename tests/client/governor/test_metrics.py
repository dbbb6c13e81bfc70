"""A server's /metrics, of any kind and in any state, becomes a load or nothing."""

from __future__ import annotations

import pytest

from nemo_llm_stage.client.governor.metrics import MAX_METRICS_BYTES, ServerLoad, parse_load

VLLM = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 200.0
vllm:num_requests_waiting{engine="0",model_name="m"} 12.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 12.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.75
vllm:num_preemptions_total{engine="0",model_name="m"} 3.0
vllm:num_preemptions_created{engine="0",model_name="m"} 1.7e+09
vllm:prompt_tokens_total{engine="0",model_name="m"} 1000.0
vllm:request_prefill_time_seconds_sum{engine="0",model_name="m"} 0.5
vllm:generation_tokens_total{engine="0",model_name="m"} 5000.0
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 1000.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 250.0
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="1000"} 1.0
vllm:iteration_tokens_total_bucket{le="1.0",model_name="m"} 3.0
"""


def test_vllm_tells_all_of_its_load() -> None:
    """Gauges, counters, and the size of the KV cache, which is in labels."""
    assert parse_load(VLLM) == ServerLoad(
        "vllm",
        running=200,
        waiting=12,
        kv_usage=0.75,
        kv_tokens=16_000,
        num_preemptions=3,
        output_tokens=5000,
        hit_rate=0.25,
        prompt_speed=1500.0,
    )


def test_the_ranks_of_a_server_are_summed() -> None:
    """Each data-parallel rank has requests of its own; the fullest KV cache counts."""
    load = parse_load(VLLM + VLLM.replace(b'engine="0"', b'engine="1"').replace(b"0.75", b"0.5"))
    assert load is not None
    assert (load.running, load.waiting, load.num_preemptions, load.kv_tokens) == (400, 24, 6, 32_000)
    assert load.kv_usage == 0.75


def test_ranks_that_share_their_requests_count_once() -> None:
    """SGLang's tensor-parallel ranks each tell the whole."""
    text = "".join(
        f'sglang:num_running_reqs{{dp_rank="{dp}",tp_rank="{tp}"}} 10\nsglang:num_queue_reqs{{dp_rank="{dp}"}} 1\n'
        for dp in range(2)
        for tp in range(4)
    )
    load = parse_load(text.encode())
    assert load is not None
    assert (load.running, load.waiting) == (20, 2)


def test_llama_cpp_tells_how_fast_it_reads_prompts() -> None:
    """Tokens and seconds since its start; without any work there is no speed."""
    loads = [
        parse_load(
            b"llamacpp:requests_processing 1\nllamacpp:requests_deferred 0\n"
            b"llamacpp:prompt_tokens_total %d\nllamacpp:prompt_seconds_total %d\n" % counted
        )
        for counted in ((1200, 4), (0, 0))
    ]
    assert [load and load.prompt_speed for load in loads] == [300.0, None]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'vllm:num_requests_running{model="m"} 3\nvllm:num_requests_waiting 1\nvllm:gpu_cache_usage_perc 0.25\n',
            ServerLoad("vllm", 3, 1, kv_usage=0.25),
        ),
        (
            "sglang:num_running_reqs 8.0\nsglang:num_queue_reqs 2.0\nsglang:max_total_num_tokens 471258\n",
            ServerLoad("sglang", 8, 2, kv_tokens=471_258),
        ),
        (
            "llamacpp:requests_processing 4\nllamacpp:requests_deferred 60\nllamacpp:kv_cache_usage_ratio 0.5\n",
            ServerLoad("llama.cpp", 4, 60, kv_usage=0.5),
        ),
        ("tgi_batch_current_size 16\ntgi_queue_size 2\n", ServerLoad("tgi", 16, 2)),
        (
            'dynamo_frontend_inflight_requests{model="m"} 12\ndynamo_frontend_queued_requests{model="m"} 2\n',
            ServerLoad("dynamo", 10, 2, is_queue=False),
        ),
        (
            "num_requests_running 5\nnum_requests_waiting 0\ngpu_cache_usage_perc 0.1\nnum_request_max 2048\n",
            ServerLoad("nim", 5, 0, kv_usage=0.1, max_running=2048),
        ),
    ],
    ids=["old vllm", "sglang", "llama.cpp", "tgi", "dynamo", "nim"],
)
def test_servers_are_known_by_their_names(text: str, expected: ServerLoad) -> None:
    """Each kind of server has names of its own."""
    assert parse_load(text.encode()) == expected


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"<html>Not found</html>",
        b'{"error": "not found"}',
        b"vllm:num_requests_running 3\n",
        b"vllm:num_requests_running NaN\nvllm:num_requests_waiting 0\n",
        b"vllm:num_requests_running -1\nvllm:num_requests_waiting 0\n",
        b"vllm:num_requests_running +Inf\nvllm:num_requests_waiting 0\n",
        b"vllm:num_requests_running\nvllm:num_requests_waiting\n",
        b'vllm:num_requests_running{engine="0" 3\nvllm:num_requests_waiting} 0\n',
        b"vllm:num_requests_running \xff\nvllm:num_requests_waiting \x00\n",
        b"process_cpu_seconds_total 12\n",
        VLLM + b"#" * MAX_METRICS_BYTES,
    ],
)
def test_what_tells_no_load_is_nothing(text: bytes) -> None:
    """No running or no waiting requests, odd numbers, other texts, texts without end."""
    assert parse_load(text) is None


DYNAMO = b"""dynamo_frontend_inflight_requests{model="m"} 160
dynamo_frontend_queued_requests{model="m"} 34
dynamo_frontend_model_max_num_seqs{model="m"} 64
dynamo_frontend_model_total_kv_blocks{model="m"} 1000
dynamo_frontend_model_kv_cache_block_size{model="m"} 64
dynamo_frontend_cached_tokens_sum{model="m"} 30
dynamo_frontend_input_sequence_tokens_sum{model="m"} 120
dynamo_frontend_worker_last_time_to_first_token_seconds{dp_rank="none",worker_id="1",worker_type="decode"} 0.6
dynamo_frontend_worker_last_time_to_first_token_seconds{dp_rank="none",worker_id="2",worker_type="decode"} 0.7
dynamo_frontend_worker_last_time_to_first_token_seconds{dp_rank="none",worker_id="3",worker_type="prefill"} 0.7
"""


def test_dynamos_queue_is_what_its_workers_have_no_slot_for() -> None:
    """Of those without a first token the others are in their prefill; the KV cache is that of all workers."""
    load = parse_load(DYNAMO)
    assert load == ServerLoad("dynamo", 128, 32, kv_tokens=128_000, max_running=128, hit_rate=0.25)
    load = parse_load(DYNAMO.replace(b" 160\n", b" 100\n"))
    assert load is not None
    assert (load.running, load.waiting, load.is_queue) == (100, 0, True)


def test_the_ranks_of_dynamos_workers_have_slots_of_their_own() -> None:
    """A worker that tells its ranks counts as so many."""
    load = parse_load(
        DYNAMO.replace(b'"none",worker_id="2"', b'"0",worker_id="1"').replace(
            b'"none",worker_id="3",worker_type="prefill"', b'"1",worker_id="1",worker_type="decode"'
        )
    )
    assert load is not None
    assert load.max_running == 128


def test_odd_side_values_cost_nothing_else() -> None:
    """A usage beyond 1 or a block size of "None" is left out."""
    odd = VLLM.replace(b"0.75", b"75").replace(b'num_gpu_blocks="1000"', b'num_gpu_blocks="None"')
    load = parse_load(odd)
    assert load is not None
    assert (load.running, load.kv_usage, load.kv_tokens) == (200, None, None)


def test_label_values_may_hold_anything() -> None:
    """Braces, commas and escaped quotes within a model's name."""
    text = (
        b'vllm:num_requests_running{model_name="a}{\\"b, c=\\"d"} 3\nvllm:num_requests_waiting{model_name="x"} 1 17\n'
    )
    load = parse_load(text)
    assert load is not None
    assert (load.running, load.waiting) == (3, 1)
