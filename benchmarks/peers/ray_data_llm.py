"""
ray.data.llm: its HTTP processor at the setting that keeps most requests in flight.

Requests of one batch go out one after another, and four batches run at once by default; a batch of one row and as many
batches as requests wanted is the best there is.
"""

import os
import sys
from typing import Any


def preprocess(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with its request."""
    content = f"Summarize in one sentence:\n\n{row['text']}"
    payload = {
        "model": "sim", "messages": [{"role": "user", "content": content}], "max_tokens": 2048, "temperature": 0,
    }  # fmt: skip
    return {**row, "payload": payload}


def postprocess(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with its answer."""
    answer = row["http_response"]["choices"][0]["message"]["content"]
    return {"id": row["id"], "text": row["text"], "summary": answer}


def main(source: str, output: str, base_url: str, in_flight: str) -> None:
    """Ask every row and write the files."""
    os.environ["RAY_DATA_DEFAULT_ASYNC_BATCH_UDF_MAX_CONCURRENCY"] = in_flight  # read when ray.data is imported
    import ray
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    config = HttpRequestProcessorConfig(url=f"{base_url}/chat/completions", batch_size=1, concurrency=1)
    processor = build_processor(config, preprocess=preprocess, postprocess=postprocess)
    processor(ray.data.read_parquet(source)).write_parquet(output)


if __name__ == "__main__":
    main(*sys.argv[1:5])
