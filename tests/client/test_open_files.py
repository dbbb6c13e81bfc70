"""Open files: the soft limit is raised, and a hard one that is too low is told before the first request."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_llm_stage.testing import SimulatedServer

pytestmark = pytest.mark.slow

NUM_ROWS = 700


def run(folder: Path, server: SimulatedServer, limits: str, in_flight: int) -> subprocess.CompletedProcess[str]:
    """A job in a shell with these limits of open files."""
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(NUM_ROWS)))
    words = (
        f"-m nemo_llm_stage run --input {path} --output {folder / 'out'} --base-url {server.base_url} --engine local"
    )
    words += f" --model sim --output-column x --max-concurrent-requests {in_flight} --prompt '{{{{ text }}}}'"
    return subprocess.run(
        ["sh", "-c", f"{limits}; exec {sys.executable} {words}"], capture_output=True, text=True, timeout=120
    )


def test_the_soft_limit_is_raised(tmp_path: Path) -> None:
    """More requests are in flight than the shell allows files."""
    with SimulatedServer(service_time_s=1.0, max_num_seqs=NUM_ROWS) as server:
        result = run(tmp_path, server, "ulimit -Sn 300", 600)
        assert result.returncode == 0, result.stderr
        assert server.stats.max_in_flight > 300


def test_a_hard_limit_that_is_too_low_is_told(tmp_path: Path) -> None:
    """With what it would have to be; nothing is sent but the look at the server."""
    with SimulatedServer() as server:
        result = run(tmp_path, server, "ulimit -Sn 300; ulimit -Hn 800", 600)
        assert result.returncode == 2
        assert "600 requests in flight in one process need 856 open files" in result.stderr
        assert server.stats.num_requests == 0
