"""
How long does each step of the tutorial in pipelines/README.md take?

Runs the tutorial's commands as they stand there, in a new folder, on the embedded model's server, which it starts
first. `--install` begins with a clone and a new environment, as README.md says; that needs a package index. Wall times
hold on an idle machine; the CPU time of a step (without the server's) holds on a busy one too.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _report import ROOT, make_parser, show

from nemo_llm_stage.embedded.local_server import LocalServer


def commands() -> list[str]:
    """Return the commands of the tutorial."""
    text = (ROOT / "pipelines" / "README.md").read_text()
    tutorial = text[text.index("## Tutorial") :]
    block = re.search(r"```sh\n(.*?)```", tutorial, re.DOTALL)
    assert block
    return block[1].splitlines()


def timed(command: str, folder: Path, environment: dict[str, str]) -> dict[str, object]:
    """Run a command, and return what it took."""
    before, started_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    result = subprocess.run(
        command, shell=True, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    wall_s = time.monotonic() - started_s
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if result.returncode:
        raise SystemExit(f"{command}: exit code {result.returncode}\n{result.stdout}{result.stderr}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"command": command, "wall_s": round(wall_s, 2), "cpu_s": round(cpu_s, 2)}


def main() -> None:
    """Run the benchmark."""
    parser = make_parser(__doc__)
    parser.add_argument("--install", action="store_true", help="begin with a clone and a new environment")
    args = parser.parse_args()
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder, environment = Path(name), {**os.environ, "PYTHONPATH": str(ROOT)}
        programs = Path(sys.executable).parent
        if args.install:
            del environment["PYTHONPATH"]
            programs = folder / "clone" / ".venv" / "bin"
            install = "python3 -m venv .venv && .venv/bin/pip install -q '.[local]'"
            results.append(timed(f"git clone -q {ROOT} clone && cd clone && {install}", folder, environment))
        environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"
        with LocalServer() as server:
            environment["OLLAMA_HOST"] = server.base_url.removesuffix("/v1")
            results += [timed(command, folder, environment) for command in commands()]
    rows = [[result["wall_s"], result["cpu_s"], result["command"]] for result in results]
    show("tutorial", options=args, columns=("wall s", "CPU s", "command"), rows=rows, results=results)


if __name__ == "__main__":
    main()
