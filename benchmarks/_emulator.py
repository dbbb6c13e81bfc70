"""
Requests at NVIDIA Dynamo's engine emulator (`dynamo.mocker`), which emulates vLLM's scheduler, in virtual time.

It needs an environment of its own:

    pip install --no-deps ai-dynamo==1.6.1 ai-dynamo-runtime==1.6.1
    pip install aiohttp prometheus-client msgspec pyzmq "kubernetes<33" tqdm transformers
    pip install zstandard uvloop pydantic pyyaml
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_llm_stage.testing.simulator.config import BLOCK_TOKENS

EMULATE = """
import json, sys
from dynamo.replay import run_trace_replay
trace, engine, in_flight = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
report = run_trace_replay(
    [trace], extra_engine_args={"engine": engine}, replay_concurrency=in_flight, trace_block_size=16,
    capture_per_request=True,
)
seen = report.per_request
print(json.dumps({
    "seconds": report.summary["duration_ms"] / 1000,
    "preemptions": sum(one["readmission_count"] for one in seen),
    "cached_tokens": sum(one["reused_input_tokens"] for one in seen),
}))
"""


@dataclass(frozen=True)
class Request:
    """A prompt, as the content of its blocks, and how much is asked for."""

    blocks: tuple[int, ...]
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Case:
    """Requests, and the server that they go to."""

    name: str
    requests: list[Request]
    numbers: tuple[int, ...]
    max_num_seqs: int
    num_kv_blocks: int
    has_prefix_cache: bool = False


def emulate(case: Case, in_flight: int, python: Path, folder: Path) -> dict[str, Any]:
    """Return what the emulator does with the requests."""
    folder.mkdir(parents=True, exist_ok=True)
    trace = folder / "trace.jsonl"
    lines = [
        {"timestamp": 0, "input_length": r.prompt_tokens, "output_length": r.output_tokens, "hash_ids": r.blocks}
        for r in case.requests
    ]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    engine = {
        "block_size": BLOCK_TOKENS,
        "max_num_seqs": case.max_num_seqs,
        "num_gpu_blocks": case.num_kv_blocks,
        "enable_prefix_caching": case.has_prefix_cache,
    }
    command = [str(python), "-c", EMULATE, str(trace), json.dumps(engine), str(in_flight)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seen: dict[str, Any] = json.loads(output.splitlines()[-1])
    return seen
