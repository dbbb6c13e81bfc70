"""A key that must be found nowhere: what to look for, and where."""

from __future__ import annotations

import base64
from pathlib import Path

CANARY = "sk-canary-5b1f0f6e8d2c4a97"


def needles() -> list[bytes]:
    """The key as it is, and as it would look in Base64, whatever stands before it."""
    packed = [base64.b64encode(b"x" * shift + CANARY.encode())[8:-8] for shift in range(3)]
    return [CANARY.encode(), *packed]


def files_with_the_key(folder: Path) -> list[str]:
    """Return the files below `folder` that hold it."""
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and any(needle in path.read_bytes() for needle in needles())
    ]


def assert_clean(name: str, text: str | bytes) -> None:
    """Fail if the key is in a text that comes from `name`."""
    data = text.encode() if isinstance(text, str) else text
    assert not any(needle in data for needle in needles()), f"the key is in {name}"
