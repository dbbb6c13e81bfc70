"""
Describe parts of Python's standard library in a NeMo Curator pipeline: read, filter by length, ask, write.

As it is, this runs on the embedded model over the documentation that comes with this Python (PSF licence), with
Curator's Ray Data executor. Needs the extras `curator` and `local`. With --base-url and --model it runs on any
OpenAI-compatible server, with --input on any Parquet with columns `id` and `text`.
"""

from contextlib import ExitStack
from pathlib import Path

import click
import pandas as pd
from nemo_curator.backends.ray_actor_pool import RayActorPoolExecutor
from nemo_curator.backends.ray_data import RayDataExecutor
from nemo_curator.backends.xenna import XennaExecutor
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.text.filters import ScoreFilter
from nemo_curator.stages.text.filters.heuristic.string import WordCountFilter
from nemo_curator.stages.text.io.reader import ParquetReader
from nemo_curator.stages.text.io.writer import ParquetWriter

from nemo_llm_stage import LLMStage, Prompt
from nemo_llm_stage.cli import Command
from nemo_llm_stage.curator import AsyncHTTPClient, LLMProcessingStage
from nemo_llm_stage.embedded.corpus import write_python_docs
from nemo_llm_stage.embedded.local_server import LocalServer

EXAMPLES = {
    "heapq.heappop: Pop the smallest item off the heap, maintaining the heap invariant.": (
        "heapq.heappop pops the smallest item off the heap."
    ),
    "KeyError: Raised when a mapping key is not found in the set of existing keys.": (
        "KeyError is raised when a mapping key is not found."
    ),
    "calendar.HTMLCalendar: This calendar returns complete HTML pages.": (
        "calendar.HTMLCalendar is a calendar that returns complete HTML pages."
    ),
    "ftplib.FTP.connect: Connect to host.": "ftplib.FTP.connect connects to a host.",
}
EXECUTORS = {"ray_data": RayDataExecutor, "actor_pool": RayActorPoolExecutor, "xenna": XennaExecutor}


@click.command(help=__doc__, cls=Command)
@click.option(
    "--input",
    "source",
    type=click.Path(exists=True),
    help="Parquet file or folder with columns `id` and `text` [this Python's documentation].",
)
@click.option("--output", default="out/curator_annotate", show_default=True, help="Folder to write.")
@click.option("--rows", default=24, show_default=True, help="Texts, where no --input is given.")
@click.option("--base-url", help="OpenAI-compatible server [the embedded model].")
@click.option("--model", help="The model's name on the server.")
@click.option("--max-concurrent-requests", type=int, help="In flight at once [what the server takes].")
@click.option("--executor", type=click.Choice(list(EXECUTORS)), default="ray_data", show_default=True)
def main(
    source: str | None,
    output: str,
    rows: int,
    base_url: str | None,
    model: str | None,
    max_concurrent_requests: int | None,
    executor: str,
) -> None:
    """Run it."""
    with ExitStack() as stack:
        if source is None:
            source = f"{output}_input.parquet"
            Path(source).parent.mkdir(parents=True, exist_ok=True)
            write_python_docs(source, num_rows=rows)
        if base_url is None:
            server = stack.enter_context(LocalServer())
            base_url, model = server.base_url, server.model
        llm_stage = LLMStage(
            client=AsyncHTTPClient(base_url, max_concurrent_requests=max_concurrent_requests or "auto"),
            model=model or "",
            prompt=Prompt(
                "{{ id }}: {{ (text.split() | join(' ')).split('. ')[0] }}",
                messages=[
                    {"role": role, "content": content}
                    for example in EXAMPLES.items()
                    for role, content in zip(("user", "assistant"), example, strict=True)
                ],
            ),
            output_column="description",
            generation_config={"max_tokens": 64, "stop": ["\n"]},
        )
        Pipeline(
            name="annotate",
            stages=[
                ParquetReader(source),
                ScoreFilter(WordCountFilter(min_words=10, max_words=1000), text_field="text", score_field="num_words"),
                LLMProcessingStage(llm_stage),
                ParquetWriter(output, mode="overwrite"),
            ],
        ).run(EXECUTORS[executor]())
    frame = pd.read_parquet(output)
    print(frame[["text", "num_words", "description", "description_error"]].head())
    print(f"{output}: {len(frame)} rows, {frame['description'].notna().sum()} answered")


if __name__ == "__main__":
    main()
