"""How the user's shell finds this program: by its name, or, where its environment is not active, by its path."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

NAME = "nemo-llm-stage"


def program() -> str:
    """Return what to type for `nemo-llm-stage`, e.g. ``.venv/bin/nemo-llm-stage`` where that is not on the PATH."""
    beside = Path(sys.executable).with_name(NAME)
    if shutil.which(NAME) is not None or not beside.exists():
        return NAME
    here = os.path.relpath(beside)
    return shlex.quote(str(beside) if here.startswith("..") else here)
