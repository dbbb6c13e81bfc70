"""The stage as a Ray Data transform."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest

from nemo_llm_stage import AsyncHTTPClient, InputError, LLMStage, MultiColumnStage, run_job
from nemo_llm_stage.dataset import failpoints
from nemo_llm_stage.testing import SimulatedServer, expected_answer

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

FRAME = pd.DataFrame({"id": range(300), "text": [f"row {i}" for i in range(300)]})


@pytest.fixture
def server() -> Iterator[SimulatedServer]:
    with SimulatedServer(service_time_s=0.005) as server:
        yield server


def make_stage(server: SimulatedServer, prompt: str = "Say {{ text }}", output_column: str = "x") -> LLMStage:
    client = AsyncHTTPClient(server.base_url, max_concurrent_requests=16)
    return LLMStage(client=client, model="sim", prompt=prompt, output_column=output_column)


def answer(text: str) -> str:
    return expected_answer([{"role": "user", "content": text}])


def parquet(folder: Path) -> Any:
    import ray.data

    FRAME.to_parquet(folder / "in.parquet")
    return ray.data.read_parquet(str(folder / "in.parquet"))


def jsonl(folder: Path) -> Any:
    import ray.data

    for index in range(3):
        part = FRAME.iloc[index * 100 : (index + 1) * 100]
        part.to_json(folder / f"{index}.jsonl", orient="records", lines=True)
    return ray.data.read_json(str(folder), file_extensions=["jsonl"], lines=True)


def hugging_face(folder: Path) -> Any:
    import ray.data

    datasets = pytest.importorskip("datasets", reason="the Hugging Face library `datasets` is not installed")
    return ray.data.from_huggingface(datasets.Dataset.from_pandas(FRAME))


def lance(folder: Path) -> Any:
    import ray.data

    library = pytest.importorskip("lance", reason="the library `pylance` is not installed")
    library.write_dataset(FRAME, str(folder / "in.lance"))
    return ray.data.read_lance(str(folder / "in.lance"))


@pytest.mark.filterwarnings("default")  # what these libraries warn of is their own affair
@pytest.mark.parametrize("read", [parquet, jsonl, hugging_face, lance], ids=lambda read: read.__name__)
def test_a_dataset_of_any_source_gets_the_columns(
    read: Callable[[Path], Any], server: SimulatedServer, tmp_path: Path
) -> None:
    """Between a read and a write of Ray Data's own, with nothing asked twice."""
    make_stage(server).map(read(tmp_path), num_actors=2).write_parquet(str(tmp_path / "out"))
    out = pd.read_parquet(tmp_path / "out").sort_values("id")
    assert out["x"].tolist() == [answer(f"Say row {i}") for i in range(300)]
    assert list(out.columns) == ["id", "text", "x", "x_error", "x_skipped", "x_meta"]
    assert server.stats.num_duplicates == 0


@pytest.mark.filterwarnings("default")
def test_a_table_becomes_another_one(server: SimulatedServer, tmp_path: Path) -> None:
    """Iceberg to Iceberg: the new table has the columns as the stage declares them."""
    import pyarrow as pa
    import ray.data

    sql = pytest.importorskip("pyiceberg.catalog.sql", reason="`pyiceberg[sql-sqlite]` is not installed")
    settings = {"name": "c", "type": "sql", "uri": f"sqlite:///{tmp_path}/c.db", "warehouse": f"file://{tmp_path}/data"}
    catalog = sql.SqlCatalog(**settings)
    catalog.create_namespace("db")
    source = pa.Table.from_pandas(FRAME, preserve_index=False)
    catalog.create_table("db.source", schema=source.schema).append(source)
    stage = make_stage(server)
    target = catalog.create_table("db.target", schema=pa.schema([*source.schema, *stage.fields]))
    dataset = ray.data.read_iceberg(table_identifier="db.source", catalog_kwargs=settings)
    stage.map(dataset).write_iceberg(table_identifier="db.target", catalog_kwargs=settings)
    out = target.refresh().scan().to_pandas().sort_values("id")
    assert out["x"].tolist() == [answer(f"Say row {i}") for i in range(300)]
    assert out["x_error"].isna().all()


def test_two_stages_stand_between_other_transforms(server: SimulatedServer, tmp_path: Path) -> None:
    """The second asks about the first one's answers."""
    dataset = parquet(tmp_path).map_batches(lambda batch: {**batch, "text": batch["text"] + "!"})
    dataset = make_stage(server).map(dataset)
    dataset = make_stage(server, "Again {{ x }}", "y").map(dataset)
    dataset = dataset.map_batches(lambda frame: frame.assign(z=frame["y"].str.upper()), batch_format="pandas")
    out = dataset.to_pandas().sort_values("id")
    first = [answer(f"Say row {i}!") for i in range(300)]
    assert out["x"].tolist() == first
    assert out["z"].tolist() == [answer(f"Again {text}").upper() for text in first]


def test_several_columns_in_one_pass_may_drop_rows_and_make_more(server: SimulatedServer, tmp_path: Path) -> None:
    """Also for a stage that follows, and for who only counts."""
    client = AsyncHTTPClient(server.base_url, max_concurrent_requests=16)
    members = [
        LLMStage(client=client, model="sim", prompt=prompt, output_column=name)
        for name, prompt in (("x", "Say {{ text }}"), ("y", "Again {{ x }}"))
    ]
    kept = MultiColumnStage(members, keep_if="id % 3 == 0").map(parquet(tmp_path))
    samples = LLMStage(
        client=client,
        model="sim",
        prompt="Vary {{ y }}",
        output_column="z",
        generation_config={"n": 2, "temperature": 1.0, "seed": None},
        explode=True,
    )
    dataset = samples.map(kept)
    assert dataset.count() == 200
    out = dataset.to_pandas().sort_values(["id", "z_choice"])
    assert out["id"].tolist() == [i for i in range(0, 300, 3) for _ in range(2)]
    assert out["y"].tolist()[::2] == [answer(f"Again {answer(f'Say row {i}')}") for i in range(0, 300, 3)]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_before_with_ray_data_llm_and_after(server: SimulatedServer, tmp_path: Path) -> None:
    """The same answers, as the migration table says."""
    llm = pytest.importorskip("ray.data.llm", reason="ray.data.llm lacks what it needs, e.g. aiohttp")
    config = llm.HttpRequestProcessorConfig(url=f"{server.base_url}/chat/completions", batch_size=16, concurrency=1)
    before = llm.build_processor(
        config,
        preprocess=lambda row: {
            "payload": {
                "model": "sim",
                "messages": [{"role": "user", "content": f"Say {row['text']}"}],
                "max_tokens": 64,
                "temperature": 0.0,
            }
        },
        postprocess=lambda row: {"id": row["id"], "x": row["http_response"]["choices"][0]["message"]["content"]},
    )
    after = LLMStage(
        client=AsyncHTTPClient(server.base_url, max_concurrent_requests=16),
        model="sim",
        prompt="Say {{ text }}",
        output_column="x",
        generation_config={"max_tokens": 64, "temperature": 0.0},
    )
    dataset = parquet(tmp_path).limit(40)
    expected = before(dataset).to_pandas().sort_values("id")["x"].tolist()
    assert after.map(dataset).to_pandas().sort_values("id")["x"].tolist() == expected


def test_a_missing_column_is_told_when_the_plan_is_made(server: SimulatedServer) -> None:
    """Not in the middle of the run."""
    import ray.data

    with pytest.raises(InputError, match="'text'"):
        make_stage(server).map(ray.data.from_items([{"txt": "a"}]))


@pytest.mark.parametrize(
    ("options", "advice"),
    [({"rows_per_block": 10}, "rows_per_block=32 can"), ({"num_actors": 7}, ""), ({"num_cpus_per_actor": 3.5}, "3.5")],
    ids=["small blocks", "defaults", "no CPU to read with"],
)
def test_settings_that_cannot_keep_the_limit_full_are_told(
    options: dict[str, Any], advice: str, server: SimulatedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """In one line, when the plan is made."""
    import ray.data

    make_stage(server).map(ray.data.from_items([{"text": "a"}]), **options)
    assert len(caplog.messages) == bool(advice)
    assert advice in caplog.text


def test_rows_that_ray_data_has_checkpointed_are_not_asked_again(server: SimulatedServer, tmp_path: Path) -> None:
    """A second run over the same file and another one asks only for the other's rows."""
    import ray.data
    from ray.data.checkpoint import CheckpointConfig

    context = ray.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        id_column="id", checkpoint_path=str(tmp_path / "ckpt"), delete_checkpoint_on_success=False
    )
    try:
        for name, part in (("first", FRAME.iloc[:100]), ("second", FRAME.iloc[100:])):
            (tmp_path / "in").mkdir(exist_ok=True)
            part.to_parquet(tmp_path / "in" / f"{name}.parquet")
            make_stage(server).map(ray.data.read_parquet(str(tmp_path / "in"))).write_parquet(str(tmp_path / "out"))
    finally:
        context.checkpoint_config = None
    out = pd.read_parquet(tmp_path / "out").sort_values("id")
    assert out["id"].tolist() == list(range(300))
    assert out["x"].tolist() == [answer(f"Say row {i}") for i in range(300)]
    assert server.stats.num_requests == 300


SMALL_CLUSTER = """
    import sys
    import ray
    from ray.cluster_utils import Cluster
    from nemo_llm_stage import AsyncHTTPClient, LLMStage
    from nemo_llm_stage.cluster.connect import quiet_ray_data

    base_url, folder, temp_dir = sys.argv[1:]
    head = {"num_cpus": 1, "include_dashboard": False, "temp_dir": temp_dir}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=1)
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    assert ray.cluster_resources()["CPU"] == 2
    quiet_ray_data()
    dataset = ray.data.read_parquet(folder + "/in.parquet")
    for name in "xyz":
        client = AsyncHTTPClient(base_url, max_concurrent_requests=16)
        stage = LLMStage(client=client, model="sim", prompt=name + " {{ text }}", output_column=name)
        dataset = stage.map(dataset)
    dataset.write_parquet(folder + "/out")
    ray.shutdown()
    cluster.shutdown()
"""


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_the_folder_of_a_job_is_read_during_and_after(
    server: SimulatedServer, tmp_path: Path, output_format: Literal["parquet", "jsonl"]
) -> None:
    """As it is, whatever a worker is writing."""
    import ray.data

    found: list[list[int]] = []
    reading = threading.Lock()
    read = ray.data.read_parquet if output_format == "parquet" else ray.data.read_json

    def look(name: str) -> None:
        with reading:
            if name == "commit.before_publish" and not found and list((tmp_path / "out").glob("part-*")):
                found.append([row["id"] for row in read(str(tmp_path / "out")).take_all()])

    FRAME.to_parquet(tmp_path / "in.parquet")
    failpoints.listen(look)
    try:
        run_job(
            stage=make_stage(server),
            input=tmp_path / "in.parquet",
            output=tmp_path / "out",
            output_format=output_format,
            engine="local",
            rows_per_partition=50,
            progress=False,
        )
    finally:
        failpoints.listen(None)
    assert 0 < len(found[0]) < 300
    assert set(found[0]) < set(FRAME["id"])
    assert sorted(row["id"] for row in read(str(tmp_path / "out")).take_all()) == FRAME["id"].tolist()


@pytest.mark.slow
def test_three_stages_finish_on_two_raylets_of_one_cpu(server: SimulatedServer, tmp_path: Path) -> None:
    """Nothing waits for a CPU that actors hold."""
    FRAME.to_parquet(tmp_path / "in.parquet")
    # A folder of its own, or other programs on this machine would join the cluster; short, as it holds sockets.
    with tempfile.TemporaryDirectory(prefix="ray-") as temp_dir:
        command = [sys.executable, "-c", textwrap.dedent(SMALL_CLUSTER), server.base_url, str(tmp_path), temp_dir]
        subprocess.run(command, check=True, timeout=300)
    out = pd.read_parquet(tmp_path / "out").sort_values("id")
    assert out["id"].tolist() == list(range(300))
    assert out["z"].tolist() == [answer(f"z row {i}") for i in range(300)]
    assert server.stats.num_requests == 900
