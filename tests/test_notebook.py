"""The notebook runs from its first cell to its last, in a real kernel, and again: nothing is paid for twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemo_llm_stage.testing import SimulatedServer

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # what Jupyter warns of is its own affair

NOTEBOOK = Path(__file__).parents[1] / "pipelines" / "notebook.ipynb"


@pytest.fixture
def server() -> Iterator[SimulatedServer]:
    with SimulatedServer(model="my-model") as server:
        yield server


def executed(folder: Path, base_url: str, cells: list[str] | None = None, **options: Any) -> Any:
    """Return the notebook, or other cells, after a real kernel has run it in `folder`."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells or []])
    if cells is None:
        notebook = nbformat.reads(NOTEBOOK.read_text().replace("http://localhost:8000/v1", base_url), 4)
    client = nbclient.NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(folder)}}, **options)
    asyncio.run(client.async_execute())
    return notebook


def shown(notebook: Any) -> str:
    """What all cells show, as text, stderr included."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


def test_the_notebook_runs_and_runs_again(tmp_path: Path, server: SimulatedServer) -> None:
    """Each result is shown as a table or a summary, and nothing on stderr; the second time nothing is sent."""
    first = executed(tmp_path, server.base_url)
    for words in ("row 1 of 12", "all 12 rows", "12 rows: 12 answered", "'answered': 12", "pandas.read_parquet"):
        assert words in shown(first)
    outputs = [output for cell in first.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "stream"]
    process, job = (cell for cell in first.cells if "stage.process" in cell.source or "run_job(" in cell.source)
    assert [len(process.outputs), len(job.outputs)] == [
        2,
        1,
    ]  # progress, and the frame; progress that ends in a summary
    assert "text/html" in job.outputs[0].data
    num_requests = server.stats.num_requests
    again = executed(tmp_path, server.base_url)
    assert "12 answers from cache_dir" in shown(again)
    assert server.stats.num_requests == num_requests + 2  # those of the preview


RUN = 'run_job(stage=stage(URL), input="in.parquet", output="out", engine="local", actors=1)'


def test_a_result_is_shown_once_in_its_own_cell_and_again_in_another(tmp_path: Path, server: SimulatedServer) -> None:
    """A cell that ends in it, or in the call that returns it, shows the summary as the end of the progress."""
    begin = f'{DEFINE}\nfrom nemo_llm_stage import run_job\nURL = "{server.base_url}"\nframe.to_parquet("in.parquet")'
    notebook = executed(tmp_path, "", [begin, f"done = {RUN}\ndone", "done", RUN])
    assert [len(cell.outputs) for cell in notebook.cells[1:]] == [1, 1, 1]
    for cell in notebook.cells[1:]:
        assert "400   100.00 %" in cell.outputs[0].data["text/plain"]
        assert cell.outputs[0].data["text/html"].startswith("<pre")


DEFINE = """
import pandas as pd
from nemo_llm_stage import AsyncHTTPClient, LLMStage
frame = pd.DataFrame({"text": [f"row {i}" for i in range(400)]})
def stage(url, prompt="{{ text }}"):
    client = AsyncHTTPClient(url, max_concurrent_requests=4)
    return LLMStage(client=client, model="my-model", prompt=prompt, output_column="x")
"""


INTERRUPT = """
import _thread, threading, time
from pathlib import Path
def interrupt():
    while not any(path.stat().st_size > 1000 for path in Path("cache").glob("*")):
        time.sleep(0.05)
    _thread.interrupt_main()
threading.Thread(target=interrupt).start()
"""


def test_a_server_that_is_down_is_one_error(tmp_path: Path) -> None:
    """At once, in place of hundreds of failed rows."""
    cells = [DEFINE, 'stage("http://127.0.0.1:9/v1").process(frame)']
    notebook = executed(tmp_path, "", cells, allow_errors=True)
    (error,) = [output for output in notebook.cells[1].outputs if output.output_type == "error"]
    assert error.ename == "ConnectionFailedError"
    assert "Is the server up" in error.evalue


def test_an_interrupted_cell_keeps_what_is_answered(tmp_path: Path) -> None:
    """The kernel lives on, and the cell run again sends only the rest."""
    with SimulatedServer(model="my-model", service_time_s=0.05) as server:
        process = f'done = stage("{server.base_url}").process(frame, cache_dir="cache")\n'
        cells = [DEFINE, INTERRUPT + process, process + 'print(done.attrs["nemo_llm_stage"])']
        notebook = executed(tmp_path, "", cells, allow_errors=True)
        assert [output.ename for output in notebook.cells[1].outputs if "ename" in output] == ["KeyboardInterrupt"]
    (printed,) = [output.text for output in notebook.cells[2].outputs if output.output_type == "stream"]
    counts = json.loads(printed.replace("'", '"'))
    assert counts["answered"] == 400
    assert 0 < counts["from_cache"] < 400
    assert counts["from_cache"] + counts["requests"] == 400
