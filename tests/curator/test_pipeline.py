"""The stage in real pipelines of the real NeMo Curator: every executor, between its own readers and writers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("nemo_curator", reason="NeMo Curator is not installed: pip install 'nemo-llm-stage[curator]'")

from nemo_curator.backends.ray_actor_pool import RayActorPoolExecutor
from nemo_curator.backends.ray_data import RayDataExecutor
from nemo_curator.backends.xenna import XennaExecutor
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.synthetic.nemotron_cc.nemotron_cc import WikipediaParaphrasingStage
from nemo_curator.stages.text.filters import ScoreFilter
from nemo_curator.stages.text.filters.heuristic.string import WordCountFilter
from nemo_curator.stages.text.io.reader import JsonlReader, ParquetReader
from nemo_curator.stages.text.io.writer import JsonlWriter, ParquetWriter
from nemo_curator.tasks import DocumentBatch
from nemo_curator.tasks.utils import TaskPerfUtils

from nemo_llm_stage import LLMStage
from nemo_llm_stage.curator import AsyncHTTPClient, GenerationConfig, LLMProcessingStage
from nemo_llm_stage.testing import Fault, SimulatedServerProcess, expected_answer

pytestmark = [
    pytest.mark.curator,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.filterwarnings("default"),  # what Curator and its libraries warn of is their own affair
]

NUM_ROWS = 120
EXECUTORS: dict[str, Callable[[], Any]] = {
    "ray_data": RayDataExecutor,
    "actor_pool": lambda: RayActorPoolExecutor(show_progress=False),
    "xenna": XennaExecutor,
    "xenna_batch": lambda: XennaExecutor({"execution_mode": "batch"}),
}


def text_of(index: int) -> str:
    return "few words" if index % 10 == 9 else f"a row of some more words, number {index}"


def write_input(folder: Path, num_partitions: int, kind: str) -> None:
    folder.mkdir()
    frame = pd.DataFrame({"id": range(NUM_ROWS), "text": [text_of(i) for i in range(NUM_ROWS)]})
    num_rows = NUM_ROWS // num_partitions
    for start in range(0, NUM_ROWS, num_rows):
        part = frame.iloc[start : start + num_rows]
        if kind == "pandas":
            part.to_parquet(folder / f"{start:03}.parquet", index=False)
        else:
            part.to_json(folder / f"{start:03}.jsonl", orient="records", lines=True)


def run(folder: Path, kind: str, stage: LLMProcessingStage, executor: Any, **options: Any) -> list[Any]:
    """Curator 1.4 reads Parquet into pandas and JSONL into Arrow."""
    reader, writer = (ParquetReader, ParquetWriter) if kind == "pandas" else (JsonlReader, JsonlWriter)
    pipeline = Pipeline(
        name="test",
        stages=[
            reader(str(folder / "in"), files_per_partition=1),
            ScoreFilter(WordCountFilter(min_words=5), text_field="text", score_field="num_words"),
            stage,
            writer(str(folder / "out")),
        ],
    )
    tasks: list[Any] = pipeline.run(executor, **options)
    return tasks


def read_output(folder: Path) -> pd.DataFrame:
    frames = [
        pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_json(path, lines=True)
        for path in (folder / "out").iterdir()
    ]
    return pd.concat(frames).sort_values("id")


def make_stage(base_url: str, **options: Any) -> LLMProcessingStage:
    client = AsyncHTTPClient(base_url, max_concurrent_requests=8, max_retries=0)
    stage = LLMStage(client=client, model="sim", prompt="Say {{ text }}", output_column="x")
    return LLMProcessingStage(stage, **options)


def answer(index: int) -> str:
    return expected_answer([{"role": "user", "content": f"Say {text_of(index)}"}])


KEPT = [i for i in range(NUM_ROWS) if i % 10 != 9]


@pytest.mark.parametrize("kind", ["pandas", "arrow"])
@pytest.mark.parametrize("num_partitions", [1, 20])
@pytest.mark.parametrize("executor", ["ray_data", "actor_pool", "xenna"])
def test_every_row_gets_its_own_answer(
    executor: str, num_partitions: int, kind: str, server_process: SimulatedServerProcess, tmp_path: Path
) -> None:
    """Asked once, between Curator's own reader, filter and writer; one file for each partition, with a traceable id."""
    write_input(tmp_path / "in", num_partitions, kind)
    tasks = run(tmp_path, kind, make_stage(server_process.base_url), EXECUTORS[executor]())
    out = read_output(tmp_path)
    assert out["id"].tolist() == KEPT
    assert out["x"].tolist() == [answer(i) for i in KEPT]
    assert out["x_error"].isna().all()
    assert (server_process.stats.num_requests, server_process.stats.num_duplicates) == (len(KEPT), 0)
    assert len(list((tmp_path / "out").iterdir())) == len({task.task_id for task in tasks}) == num_partitions
    assert not any(task.task_id.startswith("r") for task in tasks)
    metrics = TaskPerfUtils.aggregate_task_metrics(tasks)
    assert metrics["llm_x_custom.num_input_rows_sum"] == len(KEPT)
    assert metrics["llm_x_custom.total_output_tokens_sum"] == server_process.stats.output_tokens


def test_xenna_in_batch_mode_and_several_workers(server_process: SimulatedServerProcess, tmp_path: Path) -> None:
    """As `with_` sizes them."""
    write_input(tmp_path / "in", 6, "pandas")
    stage = make_stage(server_process.base_url).with_(num_workers=2, batch_size=2)
    run(tmp_path, "pandas", stage, EXECUTORS["xenna_batch"]())
    assert read_output(tmp_path)["x"].tolist() == [answer(i) for i in KEPT]


def test_a_failed_partition_is_asked_again_at_the_next_run(
    server_process: SimulatedServerProcess, tmp_path: Path
) -> None:
    """And no other: Curator's checkpoint keeps it pending."""
    write_input(tmp_path / "in", 6, "arrow")
    server_process.faults = [Fault(400, contains="number 25")]
    stage = make_stage(server_process.base_url, max_failed_rows=0)
    run(tmp_path, "arrow", stage, RayDataExecutor(), checkpoint_path=tmp_path / "checkpoint")
    assert read_output(tmp_path)["id"].tolist() == [i for i in KEPT if not 20 <= i < 40]
    server_process.faults = []
    server_process.reset()
    run(tmp_path, "arrow", stage, RayDataExecutor(), checkpoint_path=tmp_path / "checkpoint")
    assert read_output(tmp_path)["x"].tolist() == [answer(i) for i in KEPT]
    assert server_process.stats.num_requests == 18


@pytest.mark.parametrize("executor", ["ray_data", "xenna"])
def test_curators_own_stage_runs_over_many_partitions_with_our_client(
    executor: str, server_process: SimulatedServerProcess, tmp_path: Path
) -> None:
    """Each worker keeps its client over all of its partitions."""
    write_input(tmp_path / "in", 6, "pandas")
    client = AsyncHTTPClient(server_process.base_url, max_concurrent_requests=8)
    stages = [
        ParquetReader(str(tmp_path / "in"), files_per_partition=1),
        WikipediaParaphrasingStage(client=client, model_name="sim", input_field="text", output_field="x"),
        ParquetWriter(str(tmp_path / "out")),
    ]
    Pipeline(name="test", stages=stages).run(EXECUTORS[executor]())
    out = read_output(tmp_path)
    assert out["id"].tolist() == list(range(NUM_ROWS))
    assert out["x"].nunique() == out["text"].nunique()
    assert server_process.stats.num_requests == NUM_ROWS


def test_a_pipeline_may_begin_with_rows_that_are_made(server_process: SimulatedServerProcess, tmp_path: Path) -> None:
    """In place of a stage that makes them by asking: several samples of one prompt, each asked for."""
    client = AsyncHTTPClient(server_process.base_url, max_concurrent_requests=8)
    stage = LLMStage(
        client=client,
        model="sim",
        prompt="A question in {{ language }}",
        output_column="x",
        generation_config=GenerationConfig(temperature=0.9, seed=None),
    )
    rows = pd.DataFrame({"id": range(20), "language": ["English", "French"] * 10})
    pipeline = Pipeline(name="test", stages=[LLMProcessingStage(stage), JsonlWriter(str(tmp_path / "out"))])
    pipeline.run(RayDataExecutor(), initial_tasks=[DocumentBatch(dataset_name="qa", data=rows)])
    assert read_output(tmp_path)["x"].notna().sum() == server_process.stats.num_requests == 20


def test_an_unreachable_server_ends_the_pipeline_before_anything_is_read(tmp_path: Path) -> None:
    """With its address."""
    write_input(tmp_path / "in", 1, "pandas")
    with pytest.raises(Exception, match=r"127\.0\.0\.1:1"):
        run(tmp_path, "pandas", make_stage("http://127.0.0.1:1/v1"), RayDataExecutor())


def test_the_pipeline_script_runs(server_process: SimulatedServerProcess, tmp_path: Path) -> None:
    """On any server; its default is the embedded model."""
    script = Path(__file__).parents[2] / "pipelines" / "curator_annotate.py"
    options = ["--base-url", server_process.base_url, "--model", "sim", "--output", str(tmp_path / "out")]
    subprocess.run([sys.executable, str(script), *options], check=True)
    out = pd.read_parquet(tmp_path / "out")
    assert len(out) > 10
    assert out["description"].notna().all()
