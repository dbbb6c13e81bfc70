"""
Renew the pictures of the README: the live screen as SVG, and the report of a job as PNG.

Both are of a real job over 2,000 texts on three simulated servers, one of which refuses some rows. The report's picture
needs a headless Chromium on the PATH; without one it stays as it is.

    python pipelines/images/make_images.py
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Group

from nemo_llm_stage import AsyncHTTPClient, Counters, LLMStage, run_job
from nemo_llm_stage.counters import sum_counters
from nemo_llm_stage.embedded.corpus import write_python_docs
from nemo_llm_stage.report.console import PlainConsole
from nemo_llm_stage.report.page.render import write_report
from nemo_llm_stage.report.progress.meter import Meter
from nemo_llm_stage.report.progress.screen import lines
from nemo_llm_stage.report.progress.view import JobTitle
from nemo_llm_stage.testing import Fault, SimulatedServer
from nemo_llm_stage.worker.engine import RunStatus

FOLDER = Path(__file__).parent
WIDTH = 96
NUM_ROWS = 2_000
PRICE_INPUT, PRICE_OUTPUT = 0.10, 0.40
BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")


def stage_on(urls: list[str]) -> LLMStage:
    """Return a stage that labels texts."""
    return LLMStage(
        client=AsyncHTTPClient(urls, max_concurrent_requests=32),
        model="my-model",
        prompt="Summarize in one sentence: {{ text }}",
        output_column="summary",
        generation_config={"max_tokens": 64},
    )


def live_screen(stage: LLMStage, source: Path) -> str:
    """Return the screen of a run that is about half done, as SVG."""
    rows = stage.rows_of(pq.read_table(source))
    title = JobTitle(("summary",), ("my-model",), len(rows), price_input=PRICE_INPUT, price_output=PRICE_OUTPUT)
    counters, lock = Counters(), threading.Lock()

    def count(outcome) -> None:
        with lock:
            counters.count(outcome)

    meter = Meter(title, Counters(), time.monotonic())
    future = stage.submit(rows, on_done=count)
    while True:
        time.sleep(0.5)
        with lock:
            counted = sum_counters([counters])
        status = RunStatus(stage=stage.status())
        view = meter.view(status, counted, monotonic_s=time.monotonic(), now=time.time())
        if counted.num_rows >= 0.6 * len(rows):
            break
    console = PlainConsole(record=True, width=WIDTH, file=io.StringIO())
    console.print(Group(*lines(view, WIDTH)))
    future.cancel()
    return console.export_svg(title="nemo-llm-stage run job.yaml")


def report_picture(stage: LLMStage, source: Path, folder: Path) -> None:
    """Run the job in `folder`, and take a picture of the top of its report."""
    os.chdir(folder)
    run_job(
        stage=stage,
        input=source,
        output="out",
        engine="local",
        price_input=PRICE_INPUT,
        price_output=PRICE_OUTPUT,
        progress=False,
    )
    browser = next((name for name in BROWSERS if shutil.which(name)), None)
    if browser is None:
        print("no Chromium here; report.png stays as it is")
        return
    page = folder / write_report("out")
    target = f"--screenshot={FOLDER / 'report.png'}"
    options = ["--no-sandbox", "--hide-scrollbars", "--window-size=1100,900", "--virtual-time-budget=3000"]
    subprocess.run([browser, *options, target, f"file://{page}"], check=True, stderr=subprocess.DEVNULL)  # noqa: S603


def main() -> None:
    """Make them."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                SimulatedServer(
                    model="my-model",
                    service_time_s=1.0,
                    service_time_sigma=0.5,
                    answer_tokens=40,
                    answer_tokens_sigma=0.5,
                    max_num_seqs=32,
                    seed=seed,
                )
            )
            for seed in range(3)
        ]
        servers[1].faults = [Fault(400, contains="Deprecated"), Fault(503, rate=0.03, attempts=1)]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        source = folder / "docs.parquet"
        write_python_docs(source, NUM_ROWS)
        stage = stage_on([server.base_url for server in servers])
        (FOLDER / "live_screen.svg").write_text(live_screen(stage, source))
        stage.close()
        report_picture(stage, source, folder)


if __name__ == "__main__":
    main()
