"""datatrove: its InferenceRunner against an endpoint, with its request cache and checkpoints as a job would have."""

import sys
from typing import Any

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import ParquetWriter


async def ask(document: Document, generate: Any) -> Any:
    """One rollout: one question."""
    content = f"Summarize in one sentence:\n\n{document.text}"
    answer = await generate({"messages": [{"role": "user", "content": content}], "max_tokens": 2048, "temperature": 0})
    return answer.text


def flat(_: Any, document: Document) -> dict[str, Any]:
    """Return the row to write."""
    return {"text": document.text, "summary": document.metadata["rollout_results"][0]}


def main(source: str, output: str, base_url: str, in_flight: str) -> None:
    """Ask every row and write the files."""
    config = InferenceConfig(
        server_type="endpoint",
        endpoint_url=base_url.removesuffix("/v1"),
        model_name_or_path="sim",
        max_concurrent_generations=int(in_flight),
    )
    folder, _, name = source.rpartition("/")
    runner = InferenceRunner(
        rollout_fn=ask,
        config=config,
        output_writer=ParquetWriter(output, output_filename="${rank}_${chunk_index}.parquet", adapter=flat),
        checkpoints_local_dir=f"{output}_checkpoints",
        records_per_chunk=1000,
    )
    reader = ParquetReader(folder, glob_pattern=name, text_key="text", id_key="id")
    LocalPipelineExecutor(pipeline=[reader, runner], logging_dir=f"{output}_logs", tasks=1).run()


if __name__ == "__main__":
    main(*sys.argv[1:5])
