"""The command line: one message for a user's mistake, and an exit code that a script can trust."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from ray_cluster import BIN, RayCluster

from nemo_llm_stage.cli import main
from nemo_llm_stage.testing import Fault, SimulatedServer, expected_answer


@pytest.fixture
def server() -> Iterator[SimulatedServer]:
    with SimulatedServer() as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pd.DataFrame({"text": [f"row {i}" for i in range(20)]}).to_parquet(tmp_path / "in.parquet")
    return tmp_path


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def run(server: SimulatedServer, folder: Path, *arguments: Any) -> Result:
    return invoke(
        *("run", "--input", folder / "in.parquet", "--output", folder / "out", "--base-url", server.base_url),
        *("--model", "sim", "--prompt", "Say {{ text }}", "--output-column", "x", "--engine", "local", *arguments),
    )


def test_a_run_shows_rows_and_counts(server: SimulatedServer, folder: Path) -> None:
    """And ends with 0."""
    result = run(server, folder)
    assert result.exit_code == 0, result.output
    out = pd.read_parquet(folder / "out")
    assert out["x"].tolist() == [expected_answer([{"role": "user", "content": f"Say row {i}"}]) for i in range(20)]
    for words in ("row 0", "answered", "100.00 %", "input tokens"):
        assert words in result.stdout


def test_a_job_file_says_it_all_and_options_win(server: SimulatedServer, folder: Path) -> None:
    """The same settings, by either way."""
    (folder / "job.yaml").write_text(
        f"""
        input: {folder}/in.parquet
        output: {folder}/out
        client: {{base_url: "{server.base_url}", max_concurrent_requests: 4}}
        model: sim
        prompt: "Say {{{{ text }}}}"
        output_column: x
        generation_config: {{max_tokens: 100}}
        engine: local
        """
    )
    result = invoke("run", folder / "job.yaml", "--max-tokens", "7", "--stop", "a", "--stop", "b")
    assert result.exit_code == 0, result.output
    body = server.requests[0].body
    assert (body["max_tokens"], body["stop"]) == (7, ["a", "b"])


def test_failures_are_grouped_by_kind_with_an_example(server: SimulatedServer, folder: Path) -> None:
    """Every row is accounted for, so the exit code is 0."""
    server.faults = [Fault(400, contains="row 3")]
    result = run(server, folder)
    assert result.exit_code == 0
    assert "failed rows by kind" in result.stdout
    assert "bad_request" in result.stdout


def test_failed_rows_can_be_asked_again(server: SimulatedServer, folder: Path) -> None:
    """Only those."""
    server.faults = [Fault(400, contains="row 3")]
    run(server, folder)
    server.faults = []
    result = invoke("retry-failed", folder / "out")
    assert result.exit_code == 0, result.output
    out = pd.read_parquet(folder / "out")
    assert out["x"].tolist() == [expected_answer([{"role": "user", "content": f"Say row {i}"}]) for i in range(20)]
    assert server.stats.num_requests == 21


def test_too_many_failures_stop_the_run(server: SimulatedServer, folder: Path) -> None:
    """With the causes, and a way on."""
    server.faults = [Fault(400, contains="row 1")]
    result = run(server, folder, "--max-failed-rows", "5")
    assert result.exit_code == 3
    assert "11 x bad_request" in result.stderr
    assert "nemo-llm-stage explain bad_request" in result.stderr
    assert "run the same job again" in result.stderr


def test_a_run_again_after_too_many_failures_says_so_before_it_pays(server: SimulatedServer, folder: Path) -> None:
    """And offers the limit that would let it pass; raised, it says nothing."""
    pd.DataFrame({"text": [f"row {i}" for i in range(300)]}).to_parquet(folder / "in.parquet")
    server.faults = [Fault(400, contains="5")]
    stopped = ("--max-failed-rows", "5", "--rows-per-partition", "20", "--max-concurrent-requests", "1")
    assert run(server, folder, *stopped).exit_code == 3
    num_paid = server.stats.num_requests
    again = run(server, folder, *stopped)
    assert "rows failed, more than max_failed_rows = 5" in again.stderr.partition("inflight")[0]
    assert re.search(r"To go on in spite of it: --max-failed-rows \d+\.", again.stderr)
    assert num_paid < 200
    raised = run(server, folder, "--max-failed-rows", "200")
    assert raised.exit_code == 0
    assert "in the last run" not in raised.stderr


def test_a_changed_prompt_tells_what_the_finished_rows_cost(server: SimulatedServer, folder: Path) -> None:
    """In requests, tokens and money, with another folder as the first way."""
    prices = ("--price-input", "1000", "--price-output", "2000")
    run(server, folder, *prices)
    other = run(server, folder, *prices, "--prompt", "Tell {{ text }}")
    assert other.exit_code == 2
    assert "There are 20 finished rows, paid for with 20 requests" in other.stderr
    assert re.search(r"tokens, \$0\.\d+", other.stderr)
    assert f"--output {folder / 'out'}_2" in other.stderr
    assert "--restart" in other.stderr


@pytest.mark.parametrize("way", ["file", "option"])
def test_broken_lines_may_be_left_out(server: SimulatedServer, tmp_path: Path, way: str) -> None:
    """The summary and the check name file, line and reason."""
    (tmp_path / "in.jsonl").write_text('{"text": "row 0"}\n{"text"\n{"text": "row 2"}\n')
    words: dict[str, Any] = {"input": tmp_path / "in.jsonl", "output": tmp_path / "out", "prompt": "Say {{ text }}"}
    words |= {"base_url": server.base_url, "model": "sim", "output_column": "x", "engine": "local"}
    job = [part for name, value in words.items() for part in (f"--{name.replace('_', '-')}", value)]
    stopped = invoke("run", *job)
    assert stopped.exit_code == 2
    assert "in.jsonl', line 2, is not JSON" in stopped.stderr
    (tmp_path / "job.yaml").write_text("on_bad_input: skip")
    result = invoke("run", *([tmp_path / "job.yaml"] if way == "file" else ["--on-bad-input", "skip"]), *job)
    assert result.exit_code == 0, result.output
    assert len(pd.read_parquet(tmp_path / "out")) == 2
    verified = invoke("verify", tmp_path / "out")
    assert verified.exit_code == 0
    for shown in (result.stdout, verified.stdout):
        assert re.search(r"left out +1 ", shown)
        assert "is not JSON" in shown


def test_the_check_tells_what_was_wasted(server: SimulatedServer, folder: Path) -> None:
    """Sends that gave no answer worth keeping, and tokens of answers that could not be used."""
    server.faults = [Fault(500, attempts=1, contains="row 1")]  # 11 of 20 rows, once each
    run(server, folder, "--base-delay", "0.01")
    verified = invoke("verify", folder / "out")
    assert "31" in verified.stdout
    assert "35.48 % wasted" in verified.stdout


def test_verify_tells_whole_from_damaged(server: SimulatedServer, folder: Path) -> None:
    """By its exit code too."""
    run(server, folder)
    assert invoke("verify", folder / "out").exit_code == 0
    (folder / "out" / "part-00000000.parquet").unlink()
    result = invoke("verify", folder / "out")
    assert result.exit_code == 1
    assert "1 partitions are not committed" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--prompt", "{{ txt }}"], 2, "'text'"),
        (["--prompt", "{{ text"], 2, "template"),
        (["--input", "nowhere/*.parquet"], 2, "nowhere/*.parquet"),
        (["--model", "simm"], 1, "sim"),
        (["--base-url", "ftp://x"], 2, "ftp://x"),
        (["--base-url", "http://127.0.0.1:1/v1"], 1, "http://127.0.0.1:1"),
        (["--api-key-env", "NO_SUCH_VARIABLE"], 2, "NO_SUCH_VARIABLE"),
        (["--max-concurrent-requests", "0"], 2, "max_concurrent_requests"),
        (["--max-failed-rows", "-1"], 2, "max_failed_rows"),
    ],
)
def test_a_mistake_is_one_message(
    server: SimulatedServer, folder: Path, arguments: list[str], code: int, words: str
) -> None:
    """No traceback, nothing written that looks finished, nothing asked but for a look at the model."""
    settings = {"--input": folder / "in.parquet", "--prompt": "{{ text }}", "--model": "sim"}
    settings |= {"--base-url": server.base_url, "--output": folder / "out", "--output-column": "x", "--engine": "local"}
    settings[arguments[0]] = arguments[1]
    result = invoke("run", *(word for pair in settings.items() for word in pair))
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert not list(folder.glob("out/part-*"))
    assert server.stats.num_requests <= 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("inptu: x", "unknown key 'inptu'; did you mean 'input'?"),
        ("client: {base_ulr: x}", "unknown key 'client.base_ulr'; did you mean 'base_url'?"),
        ("client: {base_url: http://x, api_key: sk-1}", "api_key_env"),
        ("input: [", "not YAML"),
        ("- a", "not a mapping"),
        ("input: a", "output is missing"),
    ],
)
def test_a_mistake_in_a_job_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    """With the nearest key."""
    (tmp_path / "job.yaml").write_text(text)
    result = invoke("run", tmp_path / "job.yaml")
    assert result.exit_code == 2
    assert words in result.stderr
    assert "sk-1" not in result.output


def test_a_missing_job_file_is_named(tmp_path: Path) -> None:
    """No traceback."""
    result = invoke("run", tmp_path / "none.yaml")
    assert result.exit_code == 2
    assert "none.yaml" in result.stderr


def test_the_module_is_the_command() -> None:
    """`python -m nemo_llm_stage` is the same."""
    result = subprocess.run(
        [sys.executable, "-m", "nemo_llm_stage", "--help"], capture_output=True, text=True, check=True
    )
    assert "retry-failed" in result.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_a_submitted_job_gives_the_same_files(
    server: SimulatedServer, folder: Path, tmp_path: Path, shared_cluster: RayCluster
) -> None:
    """By `ray job submit` against a running cluster."""
    assert run(server, folder).exit_code == 0
    cluster = shared_cluster
    command = [sys.executable, "-m", "nemo_llm_stage", "run", "--input", folder / "in.parquet"]
    command += ["--output", tmp_path / "submitted", "--base-url", server.base_url, "--model", "sim"]
    command += ["--prompt", "Say {{ text }}", "--output-column", "x"]
    submit = [BIN / "ray", "job", "submit", "--address", cluster.dashboard, "--", *command]
    result = subprocess.run(submit, capture_output=True, text=True, env=cluster.env, timeout=180, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    pd.testing.assert_series_equal(pd.read_parquet(tmp_path / "submitted")["x"], pd.read_parquet(folder / "out")["x"])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_options(shell: str) -> None:
    """The printed script asks the program, which knows them."""
    assert "_NEMO_LLM_STAGE_COMPLETE" in invoke("completion", shell).stdout
    words = {"COMP_WORDS": "nemo-llm-stage run --base", "COMP_CWORD": "--base" if shell == "fish" else "2"}
    variables = words | {"_NEMO_LLM_STAGE_COMPLETE": f"{shell}_complete"}
    result = CliRunner().invoke(main, [], prog_name="nemo-llm-stage", env=variables)
    assert "--base-url" in result.stdout
