"""
The stage in a NeMo Curator pipeline, and this package's clients in Curator's own stages.

Needs the extra ``[curator]``; nothing else in the package imports this module or Curator. Knows Curator's tasks, stages
and metrics; the asking is the `LLMStage`'s.

```python
from nemo_llm_stage.curator import LLMProcessingStage

pipeline.add_stage(ParquetReader("docs/"))
pipeline.add_stage(LLMProcessingStage(llm_stage))           # between any reader and any writer
pipeline.add_stage(ParquetWriter("out/"))
```

How it flows on each executor. Curator gives a worker one batch of partitions at a time and waits for it, so requests
flow freely within a batch, and the last rows of one batch run out before the next begins. Hence `batch_size` is 16
partitions: `ROWS_PER_PERMIT` is the rule, and `with_(batch_size=…)` takes more where partitions are small, fewer where
16 of them are too much for a worker's memory.

| executor | a batch is made of | slots busy | Curator's own stage and client |
| --- | --- | --- | --- |
| Ray Data | partitions as they are read, the last batch of what is left | 0.92 | Event loop is closed |
| Xenna, streaming | partitions as they are read, the last batch of what is left | 0.91 | Event loop is closed |
| Xenna, batch | partitions after all of them were read | 0.99 | Event loop is closed |
| Ray actor pool | partitions after all of them were read | 1.00 | Event loop is closed |

Measured with 2,000 rows in 10 partitions, 64 in flight, on a simulated server of 64 slots with lognormal times (sigma
1, mean 0.37 s), from its first answer to its last start, the lowest of two runs; 2 busy cores, November 2026:
``python benchmarks/bench_curator.py --executors ray_data xenna xenna_batch actor_pool``. Where uvloop is installed, as
this package does, Curator's own client survives, opens 64 new connections for each partition, and keeps 0.56 busy on
Ray Data. With 8,000 rows in 40 partitions, three batches, ours keeps 0.89 busy on Ray Data, and 0.26 with
``batch_size=1``, where every partition is a barrier.

There is one worker, since one keeps thousands of requests in flight, and its limit is what the server sees; Curator's
own stages get several, each with a client. With ``with_(num_workers=2)`` two clients of ``max_concurrent_requests=64``
have up to 128 in flight together. Xenna's streaming mode runs all stages at once, each with whole CPUs, and refuses to
start where they do not fit; its batch mode and the others wait.

A pipeline that is killed has written whole partitions, and with ``checkpoint_path`` asks only the others again; the
answers of the batch that it was at are lost. `run_job`, files to files, journals each as it comes.

What of Curator's synthetic stages maps to what here: README, "Coming from …".
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
from loguru import logger
from nemo_curator.backends.base import NodeInfo, WorkerMetadata
from nemo_curator.backends.utils import get_configured_actor_pool_sizing_keys
from nemo_curator.models.client import llm_client as _curators_clients  # noqa: F401 - ours count as these below
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import DocumentBatch
from nemo_curator.tasks.sentinels import FailedTask
from nemo_curator.utils.performance_utils import StagePerfStats

from nemo_llm_stage.client.curators import count_as_curators
from nemo_llm_stage.client.http_client import AsyncHTTPClient
from nemo_llm_stage.client.llm_client import AsyncLLMClient, ConversationFormatter, GenerationConfig, LLMClient
from nemo_llm_stage.client.openai_client import AsyncOpenAIClient, OpenAIClient
from nemo_llm_stage.core import Outcome
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.rows.adjust import is_cut_off
from nemo_llm_stage.stage.llm_stage import LLMStage
from nemo_llm_stage.stage.loop import result_of
from nemo_llm_stage.stage.multi import as_stage
from nemo_llm_stage.stage.stage import Stage

__all__ = ["AsyncHTTPClient", "AsyncOpenAIClient", "GenerationConfig", "LLMProcessingStage", "OpenAIClient"]

ROWS_PER_PERMIT = 32
"""
A batch of so many rows for each request in flight keeps 0.93 of them busy, its end included, where times are lognormal
with sigma 0.6, and 0.77 with sigma 1; 16 rows 0.86 and 0.61, 64 rows 0.96 and 0.87.
Source: list scheduling on 64 permits.
"""


for _base in (AsyncLLMClient, LLMClient, ConversationFormatter):
    count_as_curators(_base)


class LLMProcessingStage(ProcessingStage[DocumentBatch, DocumentBatch]):  # type: ignore[misc] # Curator may be absent
    """
    An `LLMStage` or a `MultiColumnStage` for Curator's `Pipeline`: partitions in, the same ones with its columns out.

    The same rows in the same order, but for those that `keep_if` drops and `explode` makes: a partition whose rows are
    all dropped comes out empty. `_metadata` and the place of each partition stay. A pandas partition comes out as
    Arrow, since a column of structs or of nulls has a type only there, and all files must have one schema.
    A row that fails is a value in ``X_error``. Only what no row can pass raises, and ends the pipeline: an unreachable
    server or a wrong key before the first partition, a missing column, a model that is gone.

    The metrics of each partition are ``inference_server_request_time`` (seconds; they sum up to the time that the
    worker asked), ``num_input_rows``, ``num_output_rows``, ``num_failed_rows``, ``num_skipped_rows``, ``num_attempts``,
    ``total_prompt_tokens``, ``total_output_tokens``, ``total_output_chars``, ``num_output_length_truncated`` and
    ``num_empty_outputs``. All of them add up over partitions in ``TaskPerfUtils``.

    `with_` sets `name`, `resources` (0.5 CPUs), `batch_size` (16 partitions at once) and the number of workers (1).

    Args:
        stage: What to ask: an `LLMStage`, a `MultiColumnStage`, or a list of stages for several columns in one pass.
        max_failed_rows: A partition with more failed rows than this is not handed on but reported to Curator as failed,
            so that a run with ``checkpoint_path`` asks it again the next time; without one its rows are missing in the
            output. None hands on every partition.

    Raises:
        ConfigError: `stage` is none of these.
    """

    resources = Resources(cpus=0.5)
    batch_size = 16

    def __init__(self, stage: Stage | Sequence[LLMStage], *, max_failed_rows: int | None = None) -> None:
        self.stage = stage = as_stage(stage)
        self.max_failed_rows = max_failed_rows
        self.name = f"llm_{'_'.join(stage.output_columns)}"
        self._is_advised = False

    def inputs(self) -> tuple[list[str], list[str]]:
        """Return the columns that the prompt needs; none are known of a prompt that is a function."""
        return ["data"], sorted(self.stage.required_columns)

    def outputs(self) -> tuple[list[str], list[str]]:
        """Return the columns that are added."""
        return ["data"], [field.name for field in self.stage.fields]

    def num_workers(self) -> int | None:
        """Return 1, unless the workers are sized in another way: the limit of one is what the server sees."""
        is_sized = self.num_workers_per_node() is not None or get_configured_actor_pool_sizing_keys(
            self.ray_stage_spec()
        )
        return None if is_sized else 1

    def setup_on_node(self, node_info: NodeInfo | None = None, worker_metadata: WorkerMetadata | None = None) -> None:
        """
        Find out, before anything is read, whether this node reaches the server and may ask for the model.

        Raises:
            FatalError: The key or the model is wrong.
            TransientError: The server cannot be reached.
        """
        self.stage.check_server()
        self.stage.close()

    def setup(self, worker_metadata: WorkerMetadata | None = None) -> None:
        """Make sure that all is closed with the worker: most executors never call `teardown`."""
        self._closer = weakref.finalize(self, self.stage.close)

    def teardown(self) -> None:
        """Close the connections."""
        self.stage.close()

    def process(self, task: DocumentBatch) -> DocumentBatch | FailedTask:
        """Return the partition with the stage's columns; see `process_batch`."""
        return self.process_batch([task])[0]

    def process_batch(self, tasks: Iterable[DocumentBatch]) -> list[DocumentBatch | FailedTask]:
        """
        Return the partitions with the stage's columns, all asked at once, in the order of `tasks`.

        Raises:
            InputError: A column is missing.
            FatalError: The server refuses every request.
            RunError: The first rows were all refused. Nothing is raised for single rows.
        """
        tasks = list(tasks)  # Ray Data hands over an array, which has no truth value
        futures = []
        outputs: list[DocumentBatch | FailedTask] = []
        last_monotonic_s = time.monotonic()
        try:
            for task in tasks:
                self.stage.check_columns(task.get_columns())
                futures.append(self.stage.submit(self.stage.rows_of(task.data)))
            for task, future in zip(tasks, futures, strict=True):
                outcomes = result_of(future)
                now_s = time.monotonic()
                outputs.append(self._output(task, outcomes, now_s - last_monotonic_s, is_alone=len(tasks) == 1))
                last_monotonic_s = now_s
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        self._advise(tasks)
        return outputs

    def _output(
        self, task: DocumentBatch, outcomes: Sequence[Outcome], elapsed_s: float, *, is_alone: bool
    ) -> DocumentBatch | FailedTask:
        data = self.stage.add_columns(_as_arrow(task), outcomes)
        metrics = metrics_of(outcomes, elapsed_s) | {"num_output_rows": float(len(data))}
        if is_alone:
            self._log_metrics(metrics)
        if self.max_failed_rows is not None and metrics["num_failed_rows"] > self.max_failed_rows:
            return FailedTask()
        carried = {"_stage_perf": list(task._stage_perf), "_metadata": dict(task._metadata)}  # noqa: SLF001
        output = replace(task, data=data, **carried)
        if not is_alone:  # metrics of a batch are put on each of its partitions: summed once per partition
            output.add_stage_perf(StagePerfStats(stage_name=self.name, custom_metrics=metrics))
        return output

    def _advise(self, tasks: Sequence[DocumentBatch]) -> None:
        """Tell, once, that batches are too small to keep the limit full."""
        limit = self.stage.max_concurrent_requests
        num_rows = sum(task.num_items for task in tasks)
        wanted = ROWS_PER_PERMIT * limit
        if self._is_advised or len(tasks) < (self.batch_size or 1) or not 0 < num_rows < wanted:
            return
        self._is_advised = True
        logger.warning(
            f"{self.name}: {len(tasks)} partitions at once have {num_rows} rows for {limit} requests in flight, so the "
            f"server idles at the end of each batch; with_(batch_size={-(-wanted * len(tasks) // num_rows)}) avoids it."
        )

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what belongs to this process."""
        return {name: value for name, value in self.__dict__.items() if name != "_closer"}


def _as_arrow(task: DocumentBatch) -> Any:
    """Return the partition's data as Arrow; as it is where Arrow has no type for it, e.g. for mixed Python objects."""
    try:
        return task.to_pyarrow()
    except pa.ArrowException:
        return task.data


def metrics_of(outcomes: Sequence[Outcome], elapsed_s: float) -> dict[str, float]:
    """Return the counts of one partition's rows, under Curator's names where it has them; see `LLMProcessingStage`."""
    counters = Counters()
    for outcome in outcomes:
        counters.count(outcome)
    results = [result for outcome in outcomes for result in outcome.values()]
    completions = [result.completion for result in results if result.completion is not None]
    chars = [sum(len(text.strip()) for text in completion.texts) for completion in completions]
    return {
        "inference_server_request_time": elapsed_s,
        "num_input_rows": float(counters.num_rows),
        "num_failed_rows": float(counters.num_failed),
        "num_skipped_rows": float(counters.num_skipped),
        "num_attempts": float(counters.num_attempts),
        "total_prompt_tokens": float(counters.input_tokens),
        "total_output_tokens": float(counters.output_tokens),
        "total_output_chars": float(sum(chars)),
        "num_output_length_truncated": float(sum(map(is_cut_off, completions))),
        "num_empty_outputs": float(chars.count(0)),
    }
