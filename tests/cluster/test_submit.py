"""A job file on a running cluster, by `nemo-llm-stage submit`; and the files for KubeRay and Slurm."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner, Result
from doc_parts import block_commands
from ray_cluster import BIN, RayCluster

from nemo_llm_stage.cli import main
from nemo_llm_stage.config.load import make_config
from nemo_llm_stage.errors import OutputConflictError
from nemo_llm_stage.job.state import JobState, read_state
from nemo_llm_stage.testing import SimulatedServer

PIPELINES = Path(__file__).parent.parent.parent / "pipelines"


def write_job(folder: Path, name: str = "job", **settings: Any) -> Path:
    job = {"input": str(folder / "in.parquet"), "output": str(folder / "out"), "output_column": "x", "model": "sim"}
    job |= {"client": {"base_url": "http://127.0.0.1:9/v1"}, "prompt": "{{ text }}"}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**job, **settings}))
    return path


def submit(*words: object) -> Result:
    return CliRunner().invoke(main, ["submit", *map(str, words)])


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_runs_on_the_cluster_and_its_exit_code_comes_back(tmp_path: Path, shared_cluster: RayCluster) -> None:
    """0 with its output where it fits, 2 with the message where a setting does not, 1 where the package is missing."""
    pd.DataFrame({"text": [f"row {i}" for i in range(20)]}).to_parquet(tmp_path / "in.parquet")
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')  # without any package
    bare.chmod(0o755)
    cluster = shared_cluster

    def start(name: str, *more: str, **settings: Any) -> subprocess.Popen[str]:
        path = write_job(tmp_path, name, **settings)
        words = ["submit", path.name, "--address", cluster.dashboard, "--follow", *more]
        command = [sys.executable, "-m", "nemo_llm_stage", *words]
        return subprocess.Popen(
            command, cwd=tmp_path, env=cluster.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    with SimulatedServer() as server:
        client = {"base_url": server.base_url}
        good = start("good", client=client)
        bad = start("bad", client=client, input=str(tmp_path / "nowhere.parquet"), output=str(tmp_path / "none"))
        others = [start("other", "--python", python) for python in (str(bare), "/nowhere/python")]
        said = {driver: driver.communicate(timeout=180)[0] for driver in (good, bad, *others)}
    assert good.returncode == 0, said[good]
    assert len(pd.read_parquet(tmp_path / "out")) == 20
    assert "Uploading" not in said[good]  # Ray's own log
    assert "WebSocket" not in said[good]
    assert bad.returncode == 2
    assert "nowhere.parquet" in said[bad]
    for other in others:
        assert other.returncode == 1, said[other]
        assert "has no nemo_llm_stage" in said[other]
        assert "--python" in said[other]


@pytest.mark.ray
@pytest.mark.slow
def test_rays_own_command_submits_a_job(tmp_path: Path, shared_cluster: RayCluster) -> None:
    """CLUSTER.md's, as it stands there, but for the address and a package that no index has."""
    pd.DataFrame({"text": ["one", "two"]}).to_parquet(tmp_path / "in.parquet")
    (words,) = [words for document, words in block_commands() if words[:3] == ["ray", "job", "submit"]]
    words = [word.replace("http://head:8265", shared_cluster.dashboard) for word in words]
    place = words.index("--runtime-env-json")
    assert "pip" in json.loads(words[place + 1])
    del words[place : place + 2]
    with SimulatedServer() as server:
        write_job(tmp_path, client={"base_url": server.base_url})
        result = subprocess.run(words, cwd=tmp_path, env=shared_cluster.env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert pd.read_parquet(tmp_path / "out")["x"].notna().all()


@pytest.mark.parametrize("place", ["input", "output"])
def test_a_relative_path_is_refused(tmp_path: Path, place: str) -> None:
    """On the cluster it would be in a copy that is thrown away."""
    result = submit(
        write_job(tmp_path, **{place: "here"}), "--address", "http://127.0.0.1:9", "--working-dir", tmp_path
    )
    assert result.exit_code == 2
    assert "'here' is a relative path" in result.stderr


def test_an_address_of_another_kind_is_refused(tmp_path: Path) -> None:
    """With the one to write."""
    result = submit(write_job(tmp_path), "--address", "ray://head:10001", "--working-dir", tmp_path)
    assert result.exit_code == 2
    assert "http://HEAD:8265" in result.stderr


def test_a_job_file_outside_the_uploaded_folder_is_refused(tmp_path: Path) -> None:
    """It would not be there."""
    (tmp_path / "other").mkdir()
    result = submit(write_job(tmp_path), "--address", "http://127.0.0.1:9", "--working-dir", tmp_path / "other")
    assert result.exit_code == 2
    assert "--working-dir" in result.stderr


def test_a_secret_does_not_go_into_the_runtime_environment(tmp_path: Path) -> None:
    """Ray shows it to everyone."""
    words = ["--address", "http://127.0.0.1:9", "--working-dir", tmp_path, "--env", "MY_API_KEY=canary"]
    result = submit(write_job(tmp_path), *words)
    assert result.exit_code == 2
    assert "MY_API_KEY" in result.stderr
    assert "canary" not in result.output


def test_the_manifest_holds_a_valid_job_and_runs_it() -> None:
    """The job file is mounted where the entrypoint looks, in every pod, with the key that it names."""
    config_map, ray_job = yaml.safe_load_all((PIPELINES / "rayjob.yaml").read_text())
    config = make_config(yaml.safe_load(config_map["data"]["job.yaml"]))
    spec = ray_job["spec"]
    cluster = spec["rayClusterSpec"]
    assert spec["entrypoint"].split()[-1] == "/job/job.yaml"
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["volumes"][0]["configMap"]["name"] == config_map["metadata"]["name"]
        (container,) = pod["containers"]
        assert container["volumeMounts"] == [{"name": pod["volumes"][0]["name"], "mountPath": "/job"}]
        assert [variable["name"] for variable in container["env"]] == [config.client.api_key_env]


def test_the_batch_script_is_valid_bash() -> None:
    """As far as a machine without Slurm can tell."""
    script = str(PIPELINES / "slurm.sbatch")
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


@pytest.mark.ray
@pytest.mark.slow
def test_a_plain_ray_job_that_is_stopped_can_be_resumed(tmp_path: Path, shared_cluster: RayCluster) -> None:
    """By `ray job submit` and `ray job stop`; what was in flight is finished, and nothing is paid for twice."""
    pd.DataFrame({"text": [f"row {i}" for i in range(400)]}).to_parquet(tmp_path / "in.parquet")
    cluster = shared_cluster

    def ray(*words: str) -> None:
        command = [str(BIN / "ray"), "job", words[0], "--address", cluster.dashboard, *words[1:]]
        subprocess.run(command, cwd=tmp_path, env=cluster.env, check=True, capture_output=True, timeout=120)

    with SimulatedServer(service_time_s=0.1) as server:
        client = {"base_url": server.base_url, "max_concurrent_requests": 4}
        job = write_job(tmp_path, client=client, rows_per_partition=20)
        words = ["--working-dir", ".", "--no-wait", "--submission-id", tmp_path.name]
        ray("submit", *words, "--", "nemo-llm-stage", "run", job.name)
        wait_for(tmp_path / "out", lambda state: state.status is not None and state.status.counters.num_rows > 20)
        ray("stop", tmp_path.name)
        state = wait_for(tmp_path / "out", lambda state: not state.is_live)
        assert state.state == "stopped"
        result = CliRunner().invoke(main, ["run", str(job), "--engine", "local", "--max-concurrent-requests", "64"])
        assert result.exit_code == 0, result.output
        assert server.stats.num_requests == 400


def wait_for(output: Path, is_there: Callable[[JobState], object]) -> JobState:
    """Return the first state for which `is_there` is true."""
    give_up_s = time.monotonic() + 90
    while time.monotonic() < give_up_s:
        with suppress(OutputConflictError):  # there is no job yet
            state = read_state(str(output))
            if is_there(state):
                return state
        time.sleep(0.1)
    raise AssertionError("it never came")


STAND_INS = {
    "scontrol": 'test "$*" = "show hostnames nodes"; printf "localhost\\nother\\n"',
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "ray": "exec sleep 600 > /dev/null",
    "vllm": 'echo "$@"; exec sleep 600 > /dev/null',
    "curl": "exit 0",
    "nemo-llm-stage": 'exec {python} -c "{driver}" "$@"',
}
"""Programs that only a cluster has → what stands in their place."""

DRIVER = """
import signal, sys
from nemo_llm_stage.cli import main
context = main.commands['run'].make_context('run', sys.argv[2:])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print(*context.params['base_url'], flush=True)
signal.pause()
"""


@pytest.mark.slow
def test_the_batch_script_starts_servers_and_passes_the_signal_on(tmp_path: Path) -> None:
    """The job knows a server for each GPU of each node; at Slurm's signal it ends, and the script with its code."""
    (tmp_path / "job.yaml").touch()
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in STAND_INS.items():
        stand_in = programs / name
        stand_in.write_text("#!/usr/bin/env bash\n" + text.format(python=sys.executable, driver=DRIVER) + "\n")
        stand_in.chmod(0o755)
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    env |= {"SLURM_JOB_NODELIST": "nodes", "SLURM_GPUS_ON_NODE": "2"}
    words = ["bash", str(PIPELINES / "slurm.sbatch"), "job.yaml", "my-org/my-model"]
    with subprocess.Popen(
        words, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as script:
        assert script.stdout is not None
        urls = script.stdout.readline().split()
        script.terminate()
        code = script.wait()
        os.killpg(script.pid, signal.SIGKILL)  # the servers and Ray; Slurm would end them
    assert code == 143
    assert urls == [f"http://{node}:{port}/v1" for node in ("localhost", "other") for port in (8100, 8101)]
    served = {path.read_text() for path in tmp_path.glob("vllm-*.log")}
    assert served == {f"serve my-org/my-model --port {port}\n" for port in (8100, 8101)}
