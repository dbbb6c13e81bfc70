"""
The program that `bench_curator` measures: partitions through one stage, between NeMo Curator's own reader and writer.

Runs in a process of its own, on a Ray cluster of its own, so that a pipeline that fails takes nothing with it.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from typing import Any

PROMPT = "Summarize in one sentence:\n\n"
NUM_CPUS = 5
"""More than a laptop has: Xenna gives each stage whole CPUs, and refuses to start where they do not fit."""


def own_stage(base_url: str, in_flight: int) -> Any:
    """Return Curator's stage with Curator's client."""
    from nemo_curator.models.client.llm_client import GenerationConfig
    from nemo_curator.models.client.openai_client import AsyncOpenAIClient

    client = AsyncOpenAIClient(max_concurrent_requests=in_flight, base_url=base_url, api_key="none", timeout=600)
    return own_stage_with(client, GenerationConfig())


def own_stage_with(client: Any, generation_config: Any) -> Any:
    """Return Curator's stage with a client."""
    from nemo_curator.stages.synthetic.nemotron_cc.base import BaseSyntheticStage

    return BaseSyntheticStage(
        prompt=PROMPT + "{document}",
        input_field="text",
        output_field="summary",
        client=client,
        model_name="sim",
        generation_config=generation_config,
    )


def our_client_stage(base_url: str, in_flight: int) -> Any:
    """Return Curator's stage with this package's client."""
    from nemo_llm_stage.curator import AsyncHTTPClient, GenerationConfig

    return own_stage_with(AsyncHTTPClient(base_url, max_concurrent_requests=in_flight), GenerationConfig())


def our_stage(base_url: str, in_flight: int) -> Any:
    """Return this package's stage."""
    from nemo_llm_stage import LLMStage
    from nemo_llm_stage.curator import AsyncHTTPClient, LLMProcessingStage

    client = AsyncHTTPClient(base_url, max_concurrent_requests=in_flight)
    return LLMProcessingStage(
        LLMStage(client=client, model="sim", prompt=PROMPT + "{{ text }}", output_column="summary")
    )


STAGES = {
    "ours": our_stage,
    "curator": own_stage,
    "curator_uvloop": own_stage,
    "curator_our_client": our_client_stage,
}


def make_executor(name: str) -> Any:
    """Return one of Curator's executors."""
    if name == "ray_data":
        from nemo_curator.backends.ray_data import RayDataExecutor

        return RayDataExecutor()
    if name == "actor_pool":
        from nemo_curator.backends.ray_actor_pool import RayActorPoolExecutor

        return RayActorPoolExecutor(show_progress=False)
    from nemo_curator.backends.xenna import XennaExecutor

    return XennaExecutor({"execution_mode": "batch"} if name == "xenna_batch" else None)


def start_cluster() -> Any:
    """Return a Ray cluster that no other program of this machine joins, named in RAY_ADDRESS."""
    import nemo_curator  # noqa: F401 - sets limits that the cluster must be started with
    from ray.cluster_utils import Cluster

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="ray-")
    head = {"num_cpus": NUM_CPUS, "include_dashboard": True, "dashboard_port": port, "temp_dir": folder}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    os.environ["RAY_ADDRESS"] = cluster.address
    return cluster


def main(stage: str, executor: str, source: str, output: str, base_url: str, in_flight: str, batch_size: str) -> None:
    """Ask every row and write the files."""
    from nemo_curator.pipeline import Pipeline
    from nemo_curator.stages.text.io.reader import ParquetReader
    from nemo_curator.stages.text.io.writer import ParquetWriter

    if stage == "curator":
        os.environ["RAY_USE_UVLOOP"] = "0"  # uvloop comes with this package, and Ray's workers use what is there
    made = STAGES[stage](base_url, int(in_flight))
    if batch_size != "0":
        made = made.with_(batch_size=int(batch_size))
    cluster = start_cluster()
    try:
        stages = [ParquetReader(source, files_per_partition=1), made, ParquetWriter(output)]
        Pipeline(name="summaries", stages=stages).run(make_executor(executor))
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:8])
