"""
The process that serves the embedded model: llama.cpp's server inside Python, until the parent ends.

Run as a file, not as a module of the package, so that it imports nothing else. Knows xllamacpp; its settings come as
JSON in the first argument.
"""

from __future__ import annotations

import json
import os
import select
import sys
from typing import Any

_WATCH_S = 1.0


def main() -> None:
    """Load the model, write the server's address as one line to stdout, and stay as long as the parent does."""
    settings = json.loads(sys.argv[1])
    answer_fd = os.dup(1)
    os.dup2(2, 1)  # whatever the libraries print belongs in the log
    server = _serve(settings)
    os.write(answer_fd, f"{server.listening_address}\n".encode())
    os.close(answer_fd)
    _wait_for_parent(settings["parent_pid"])
    os._exit(0)  # answers under way are given up; the system closes their sockets at once


def _serve(settings: dict[str, Any]) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["gguf"]
    params.model_alias = {settings["model"]}
    params.port = settings["port"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["num_threads"]
    params.n_parallel = settings["num_slots"]
    params.n_ctx = settings["num_slots"] * settings["context_per_slot"]
    params.cache_ram_mib = 0  # the default keeps up to 8 GiB of old prompts; a slot's own last prompt stays cached
    params.cache_idle_slots = False
    params.endpoint_metrics = True
    params.ui = False
    params.cors_origins = "http://127.0.0.1"  # the default lets any web page that is open here ask
    params.verbosity = 2  # warnings and errors
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        # llama.cpp's log says which of them it is, if its thread gets to writing that before the process ends
        sys.exit(f"{error} model: {settings['gguf']}, port: {settings['port']}")


def _wait_for_parent(parent_pid: int) -> None:
    """Return when the parent has ended: its end of stdin closes, or, where a fork of it holds that, its id changes."""
    while os.getppid() == parent_pid:
        if select.select([sys.stdin], [], [], _WATCH_S)[0]:
            return


if __name__ == "__main__":
    main()
