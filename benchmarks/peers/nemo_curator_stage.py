"""NeMo Curator: its synthetic stage and client in a Pipeline, all rows in one partition, which suits it best."""

import os
import socket
import sys
import tempfile

from nemo_curator.models.client.llm_client import GenerationConfig
from nemo_curator.models.client.openai_client import AsyncOpenAIClient
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.synthetic.nemotron_cc.base import BaseSyntheticStage
from nemo_curator.stages.text.io.reader import ParquetReader
from nemo_curator.stages.text.io.writer import ParquetWriter


def main(source: str, output: str, base_url: str, in_flight: str) -> None:
    """Ask every row and write the file."""
    client = AsyncOpenAIClient(max_concurrent_requests=int(in_flight), base_url=base_url, api_key="none", timeout=600)
    stage = BaseSyntheticStage(
        prompt="Summarize in one sentence:\n\n{document}",
        input_field="text",
        output_field="summary",
        client=client,
        model_name="sim",
        generation_config=GenerationConfig(),
    )
    pipeline = Pipeline(name="summaries", stages=[ParquetReader(source), stage, ParquetWriter(output)])
    from ray.cluster_utils import Cluster

    # Its executor reserves 3.5 CPUs for these stages, so a laptop must claim to have more than it does; the folder of
    # its own keeps other programs of this machine out of the cluster.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="ray-")
    head = {"num_cpus": 5, "include_dashboard": True, "dashboard_port": port, "temp_dir": folder}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    os.environ["RAY_ADDRESS"] = cluster.address
    pipeline.run()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:5])
