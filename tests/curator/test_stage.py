"""The stage as a Curator stage, and this package's clients in Curator's own stages; no Ray."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

pytest.importorskip("nemo_curator", reason="NeMo Curator is not installed: pip install 'nemo-llm-stage[curator]'")

from loguru import logger
from nemo_curator.backends.base import BaseStageAdapter
from nemo_curator.models.client import llm_client as curator_client
from nemo_curator.models.client.openai_client import AsyncOpenAIClient as CuratorsClient
from nemo_curator.stages.resources import Resources
from nemo_curator.stages.synthetic.nemotron_cc.nemotron_cc import WikipediaParaphrasingStage
from nemo_curator.stages.synthetic.qa_multilingual_synthetic import QAMultilingualSyntheticStage
from nemo_curator.tasks import DocumentBatch, EmptyTask
from nemo_curator.tasks.sentinels import FailedTask
from nemo_curator.tasks.utils import TaskPerfUtils
from ray import cloudpickle as pickle

from nemo_llm_stage import ConfigError, InputError, LLMStage, MultiColumnStage
from nemo_llm_stage.curator import AsyncHTTPClient, AsyncOpenAIClient, LLMProcessingStage, OpenAIClient
from nemo_llm_stage.testing import Fault, SimulatedServer, expected_answer

pytestmark = [pytest.mark.curator, pytest.mark.filterwarnings("default")]


def make_stage(server: SimulatedServer, **options: Any) -> LLMProcessingStage:
    client = AsyncHTTPClient(server.base_url, max_concurrent_requests=4, max_retries=0)
    stage = LLMStage(client=client, model="sim", prompt="Say {{ text }}", output_column="x")
    return LLMProcessingStage(stage, **options)


def make_task(*texts: Any, is_arrow: bool = False) -> DocumentBatch:
    frame = pd.DataFrame({"text": list(texts) or pd.Series([], dtype=str)})
    data = pa.Table.from_pandas(frame) if is_arrow else frame
    return DocumentBatch(dataset_name="d", data=data, _metadata={"source_files": ["a"]})


def answer(text: str) -> str:
    return expected_answer([{"role": "user", "content": f"Say {text}"}])


@pytest.mark.parametrize("is_arrow", [False, True], ids=["pandas", "arrow"])
def test_a_partition_gets_the_columns_and_keeps_the_rest(is_arrow: bool, server: SimulatedServer) -> None:
    """The input task stays as it was."""
    task = make_task("a", "b", is_arrow=is_arrow)
    out = make_stage(server).process(task)
    assert out.to_pandas()["x"].tolist() == [answer("a"), answer("b")]
    assert out.get_columns() == ["text", "x", "x_error", "x_skipped", "x_meta"]
    assert (out.dataset_name, out._metadata) == ("d", {"source_files": ["a"]})  # noqa: SLF001 - Curator's
    assert task.get_columns() == ["text"]


def test_all_partitions_of_a_batch_are_asked_at_once(server: SimulatedServer) -> None:
    """In the array that Ray Data hands over; each gets its own rows back."""
    tasks = np.empty(4, dtype=object)
    tasks[:] = [make_task(f"row {i}") for i in range(4)]
    outs = make_stage(server).process_batch(tasks)
    assert [out.to_pandas()["x"].item() for out in outs] == [answer(f"row {i}") for i in range(4)]


def test_one_schema_whatever_the_rows_came_to(server: SimulatedServer) -> None:
    """All answered, all failed, none at all; from pandas and from Arrow."""
    stage = make_stage(server)
    server.faults = [Fault(400, contains="bad")]
    tasks = [make_task("good"), make_task("bad"), make_task()]
    schemas = {str(stage.process(task).data.schema.remove_metadata()) for task in tasks}
    assert len(schemas) == 1


def test_data_that_arrow_has_no_type_for_stays_pandas(server: SimulatedServer) -> None:
    """Mixed Python objects, which a JSONL writer may well take."""
    task = make_task("a", 1)
    assert make_stage(server).process(task).data["x"].tolist() == [answer("a"), answer("1")]


def test_a_failed_row_is_a_value(server: SimulatedServer) -> None:
    """The others go on."""
    server.faults = [Fault(400, contains="bad")]
    out = make_stage(server).process(make_task("good", "bad")).to_pandas()
    assert out["x"].tolist()[0] == answer("good")
    assert out["x_error"].tolist()[1].startswith("bad_request: ")


def test_a_partition_with_too_many_failed_rows_is_reported_as_failed(server: SimulatedServer) -> None:
    """In its place; the others are handed on."""
    server.faults = [Fault(400, contains="bad")]
    stage = make_stage(server, max_failed_rows=1)
    outs = stage.process_batch([make_task("good", "bad"), make_task("bad", "bad")])
    assert [type(out) for out in outs] == [DocumentBatch, FailedTask]


def test_inputs_and_outputs_are_true(server: SimulatedServer) -> None:
    """They follow from the template and the columns."""
    stage = make_stage(server)
    assert stage.inputs() == (["data"], ["text"])
    assert stage.outputs() == (["data"], ["x", "x_error", "x_skipped", "x_meta"])
    assert stage.validate_input(make_task("a"))
    with pytest.raises(InputError, match="'text'"):
        stage.process(DocumentBatch(dataset_name="d", data=pd.DataFrame({"txt": ["a"]})))


def test_with_changes_a_copy_even_of_a_stage_in_use(server: SimulatedServer) -> None:
    """Name, resources, batch size and the number of workers, which are sized in one way."""
    stage = make_stage(server)
    stage.setup()
    stage.process(make_task("a"))
    other = stage.with_(name="n", resources=Resources(cpus=2), batch_size=3, num_workers=5)
    assert (other.name, other.resources.cpus, other.batch_size, other.num_workers()) == ("n", 2, 3, 5)
    assert (stage.name, stage.batch_size, stage.num_workers()) == ("llm_x", 16, 1)
    assert stage.with_(num_workers_per_node=2).num_workers() is None
    assert stage.with_(ray_stage_spec={"max_workers": 2}).num_workers() is None
    other.setup()
    assert other.process(make_task("b")).to_pandas()["x"].tolist() == [answer("b")]
    assert pickle.loads(pickle.dumps(other)).batch_size == 3
    stage.teardown()
    other.teardown()


def test_metrics_add_up_over_partitions_whatever_the_batches(server: SimulatedServer) -> None:
    """Also after each partition went over the wire by itself, where Curator cannot tell what was shared."""
    server.faults = [Fault(400, contains="bad")]
    adapter = BaseStageAdapter(make_stage(server))
    batches = [[make_task("a", "b"), make_task("bad")], [make_task("c", None)]]
    outs = [pickle.loads(pickle.dumps(out)) for batch in batches for out in adapter.process_batch(batch)]
    metrics = TaskPerfUtils.aggregate_task_metrics(outs)
    names = ("num_input_rows", "num_failed_rows", "num_skipped_rows", "num_attempts", "total_output_tokens")
    assert [metrics[f"llm_x_custom.{name}_sum"] for name in names] == [5, 1, 1, 4, server.stats.output_tokens]


def test_several_columns_in_one_pass_with_rows_dropped(server: SimulatedServer) -> None:
    """A later prompt uses an earlier answer; a partition of which nothing is kept comes out empty."""
    client = AsyncHTTPClient(server.base_url, max_concurrent_requests=4)
    members = [
        LLMStage(client=client, model="sim", prompt=prompt, output_column=name, has_meta=False)
        for name, prompt in (("x", "Say {{ text }}"), ("y", "Again {{ x }}"))
    ]
    with pytest.raises(ConfigError, match="list of stages"):
        LLMProcessingStage(client)
    stage = LLMProcessingStage(MultiColumnStage(members, keep_if="text != 'bad'"))
    assert (stage.name, stage.inputs()[1], stage.outputs()[1]) == (
        "llm_x_y", ["text"], ["x", "x_error", "x_skipped", "y", "y_error", "y_skipped"],
    )  # fmt: skip
    outs = stage.process_batch([make_task("a", "bad"), make_task("bad")])
    assert outs[0].to_pandas()["y"].tolist() == [
        expected_answer([{"role": "user", "content": f"Again {answer('a')}"}]),
    ]
    assert outs[1].num_items == 0
    assert outs[1].data.schema.equals(outs[0].data.schema)
    metrics = TaskPerfUtils.aggregate_task_metrics(outs)
    names = ("num_input_rows", "num_output_rows", "num_failed_rows")
    assert [metrics[f"llm_x_y_custom.{name}_sum"] for name in names] == [3, 1, 0]


def test_each_of_several_answers_may_become_a_row(server: SimulatedServer) -> None:
    """Beside the columns of the row that was asked."""
    stage = LLMProcessingStage(
        LLMStage(
            client=AsyncHTTPClient(server.base_url),
            model="sim",
            prompt="Say {{ text }}",
            output_column="x",
            generation_config={"n": 3, "temperature": 1.0, "seed": None},
            explode=True,
        )
    )
    out = stage.process(make_task("a", "b")).to_pandas()
    assert out["text"].tolist() == ["a"] * 3 + ["b"] * 3
    assert out["x_choice"].tolist() == [0, 1, 2] * 2


def test_the_stage_closes_its_connections_when_nobody_tears_it_down(server: SimulatedServer) -> None:
    """Most of Curator's executors do not."""
    before = set(threading.enumerate())
    stage = make_stage(server)
    stage.setup()
    stage.process(make_task("a"))
    assert set(threading.enumerate()) > before
    del stage
    assert set(threading.enumerate()) == before


def test_a_server_that_cannot_be_asked_is_told_at_setup(server: SimulatedServer) -> None:
    """Before a partition is read."""
    client = AsyncHTTPClient(server.base_url, max_retries=0)
    stage = LLMProcessingStage(LLMStage(client=client, model="other", prompt="{{ t }}", output_column="x"))
    with pytest.raises(Exception, match="other"):
        stage.setup_on_node()
    assert 200 not in server.stats.by_status


def test_batches_that_cannot_keep_the_limit_full_are_told_once(server: SimulatedServer) -> None:
    """In one line, with the setting that can; the last batch of an input may be small."""
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}", level="WARNING")
    stage = make_stage(server).with_(batch_size=2)
    for texts in (("a",), ("b", "c"), ("d", "e")):
        stage.process_batch([make_task(text) for text in texts])
    logger.remove(sink)
    stage.teardown()
    advice = [line for line in lines if "llm_x" in line]
    assert len(advice) == 1
    assert "with_(batch_size=128)" in advice[0]


@pytest.mark.parametrize("make_client", [AsyncHTTPClient, AsyncOpenAIClient], ids=lambda make: make.__name__)
def test_our_clients_run_curators_stages_over_many_partitions(make_client: Any, server: SimulatedServer) -> None:
    """A new event loop for each partition, which ends Curator's own client at the second one."""
    key = {} if make_client is AsyncHTTPClient else {"api_key": "none"}
    client = make_client(base_url=server.base_url, max_concurrent_requests=4, **key)
    assert isinstance(client, curator_client.AsyncLLMClient)
    stage = WikipediaParaphrasingStage(client=client, model_name="sim", input_field="text", output_field="y")
    stage.setup()
    for part in range(4):
        out = stage.process(make_task(*[f"part {part} row {i}" for i in range(8)])).to_pandas()
        assert out["y"].str.len().gt(0).all()
    assert (server.stats.num_requests, server.stats.num_duplicates) == (32, 0)
    qa = QAMultilingualSyntheticStage(
        prompt="A question in {language}", languages=["English"], client=client, model_name="sim", num_samples=3
    )
    qa.setup()
    assert [len(qa.process(EmptyTask()).to_pandas()) for _ in range(3)] == [3, 3, 3]


def test_our_clients_count_as_curators_whatever_is_imported() -> None:
    """Only the import of the client was changed; this package's Curator module was never loaded."""
    code = """
        import sys
        from nemo_curator.models.client.llm_client import AsyncLLMClient
        from nemo_llm_stage import AsyncHTTPClient, AsyncOpenAIClient
        for client in (AsyncHTTPClient("http://x/v1"), AsyncOpenAIClient(base_url="http://x/v1", api_key="none")):
            assert isinstance(client, AsyncLLMClient)
        assert "nemo_llm_stage.curator" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_a_client_of_this_module_counts_before_any_stage_is_imported() -> None:
    """Curator's own module of clients comes with this one."""
    code = """
        from nemo_llm_stage.curator import AsyncHTTPClient
        client = AsyncHTTPClient("http://x/v1")
        from nemo_curator.stages.synthetic.nemotron_cc.base import BaseSyntheticStage
        assert BaseSyntheticStage(client=client).is_async_client
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_curators_own_client_runs_in_our_stage_over_many_partitions(server: SimulatedServer) -> None:
    """There is one event loop for the worker's life, so it never meets a closed one."""
    client = CuratorsClient(max_concurrent_requests=4, base_url=server.base_url, api_key="none")
    stage = LLMProcessingStage(LLMStage(client=client, model="sim", prompt="Say {{ text }}", output_column="x"))
    for part in range(4):
        texts = [f"part {part} row {i}" for i in range(8)]
        assert stage.process(make_task(*texts)).to_pandas()["x"].tolist() == [answer(text) for text in texts]
    stage.teardown()
    assert server.stats.num_requests == 32


def test_the_synchronous_client_counts_as_one(server: SimulatedServer) -> None:
    """So Curator calls it without awaiting."""
    client = OpenAIClient(base_url=server.base_url, api_key="none")
    assert isinstance(client, curator_client.LLMClient)
    assert not isinstance(client, curator_client.AsyncLLMClient)
    stage = WikipediaParaphrasingStage(client=client, model_name="sim", input_field="text", output_field="y")
    stage.setup()
    assert stage.process(make_task("a")).to_pandas()["y"].str.len().gt(0).all()


def test_before_and_after_give_the_same_answers(server: SimulatedServer) -> None:
    """As the migration table says: Curator's stage, and the same in ours."""
    client = AsyncHTTPClient(server.base_url)
    before = WikipediaParaphrasingStage(client=client, model_name="sim", input_field="text", output_field="y")
    before.setup()
    after = LLMProcessingStage(
        LLMStage(
            client=client,
            model="sim",
            system_prompt=before.system_prompt,
            prompt=before.prompt.replace("{document}", "{{ text }}"),
            output_column="y",
        )
    )
    task = make_task("one", "two")
    expected = before.process(make_task("one", "two")).to_pandas()["y"].tolist()
    assert after.process(task).to_pandas()["y"].tolist() == expected
    assert server.stats.num_duplicates == 2  # the very same requests


def test_a_column_that_is_there_already_is_refused(server: SimulatedServer) -> None:
    """It would be lost."""
    task = DocumentBatch(dataset_name="d", data=pd.DataFrame({"text": ["a"], "x": ["b"]}))
    with pytest.raises(ConfigError, match="'x'"):
        make_stage(server).process(task)


def test_the_package_alone_never_imports_curator() -> None:
    """It is heavy, and not everybody has it."""
    code = "import sys, nemo_llm_stage; print('nemo_curator' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
