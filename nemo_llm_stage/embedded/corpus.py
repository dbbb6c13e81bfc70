"""
Real texts that every machine already has: the documentation inside the running Python.

Reads docstrings out of the standard library's source files and the help topics of `pydoc`. Knows files and Arrow
tables; imports none of the modules it reads and downloads nothing.
"""

from __future__ import annotations

import ast
import random
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from nemo_llm_stage.errors import ConfigError

_MODULES = (
    "abc argparse ast asyncio base64 bdb bisect bz2 calendar cmd code codecs codeop collections compileall concurrent "
    "configparser contextlib copy csv dataclasses datetime difflib dis doctest email enum filecmp fileinput fnmatch "
    "fractions ftplib functools getpass gettext glob graphlib gzip heapq hmac html http imaplib importlib inspect "
    "ipaddress json linecache locale logging lzma mimetypes modulefinder numbers operator "
    "optparse os pathlib pdb pickle pickletools pkgutil platform plistlib poplib posixpath pprint pstats pyclbr "
    "queue quopri random re sched secrets selectors shelve shutil site smtplib socket socketserver ssl statistics "
    "string subprocess symtable sysconfig tarfile tempfile textwrap threading timeit tokenize trace traceback "
    "tracemalloc types typing unittest urllib uuid warnings weakref webbrowser wsgiref xml xmlrpc zipapp zipfile"
)
"""Standard library modules and packages written in Python, part of every Python from 3.11 on."""

SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "kind", "text", "source", "license")])
"""Columns of the corpus; none is ever null."""

SOURCE = f"Python {sys.version_info.major}.{sys.version_info.minor} standard library"

_MIN_CHARS = 80


class _Doc(NamedTuple):
    id: str
    kind: str
    text: str


def python_docs(num_rows: int | None = None, *, max_chars: int | None = 400, seed: int = 0) -> pa.Table:
    """
    Return documentation texts of the running Python, sorted by id.

    A smaller sample with the same seed is part of every larger one, so a job that is run again on more rows has
    already answered the first ones. Another Python version has somewhat other texts.

    Args:
        num_rows: How many rows to draw; fewer come where there are not as many. None takes all of them.
        max_chars: Longest text; None for no upper bound (the longest has about 60,000 characters). The shortest has
            80: less is too little to ask anything about.
        seed: Chooses the sample.

    Returns:
        One row per text with the columns of `SCHEMA`: ``id`` (``json.dumps``, ``topic:assert``; unique), ``kind``
        (``module``, ``class``, ``function`` or ``topic``), ``text``, ``source``, ``license``.

    Raises:
        ConfigError: No text is that short, or this Python came without its standard library's source files.
    """
    longest = sys.maxsize if max_chars is None else max_chars
    docs = {doc.id: doc for doc in _all_docs() if _MIN_CHARS <= len(doc.text) <= longest}
    if not docs:
        raise ConfigError(
            f"no documentation of {_MIN_CHARS} to {max_chars} characters in {sysconfig.get_path('stdlib')}: "
            "allow longer texts, or use a Python whose standard library is there as source files"
        )
    ids = sorted(docs)
    random.Random(seed).shuffle(ids)  # noqa: S311 (a sample, not a secret)
    rows = [{**docs[id_]._asdict(), "source": SOURCE, "license": "PSF-2.0"} for id_ in sorted(ids[:num_rows])]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def write_python_docs(
    path: Path | str, num_rows: int | None = None, *, max_chars: int | None = 400, seed: int = 0
) -> int:
    """
    Write `python_docs` to a file, as its suffix says, and return the number of rows.

    Missing folders are made; a file that is there is replaced.

    Args:
        path: Ends in ``.parquet`` or ``.jsonl``.
        num_rows: As in `python_docs`.
        max_chars: As in `python_docs`.
        seed: As in `python_docs`.

    Raises:
        ConfigError: Another suffix, or as in `python_docs`.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".jsonl"):
        raise ConfigError(f"{path}: the name must end in .parquet or .jsonl")
    table = python_docs(num_rows, max_chars=max_chars, seed=seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in table.to_pylist()))
    return int(table.num_rows)


@cache
def _all_docs() -> tuple[_Doc, ...]:
    """Return every text there is, once more for every name that occurs again. Reading them takes a second or two."""
    return tuple(_read_all())


def _read_all() -> Iterator[_Doc]:
    stdlib = Path(sysconfig.get_path("stdlib"))
    for name in _MODULES.split():
        files = sorted((stdlib / name).rglob("*.py")) or [stdlib / f"{name}.py"]
        for file in files:
            if file.exists() and "test" not in file.parts:
                yield from _file_docs(file, file.relative_to(stdlib).with_suffix("").parts)
    topics = stdlib / "pydoc_data" / "topics.py"
    if topics.exists():
        (assignment,) = ast.parse(topics.read_bytes()).body
        assert isinstance(assignment, ast.Assign)
        for name, text in ast.literal_eval(assignment.value).items():
            yield _Doc(f"topic:{name}", "topic", text.strip())


def _file_docs(file: Path, parts: tuple[str, ...]) -> Iterator[_Doc]:
    """Yield a source file's texts; private parts of its name are left out, so ``pathlib._local`` is ``pathlib``."""
    name = ".".join(part for part in parts if not part.startswith("_"))
    tree = ast.parse(file.read_bytes())
    yield _Doc(name, "module", ast.get_docstring(tree) or "")
    yield from _member_docs(tree, name)


def _member_docs(parent: ast.Module | ast.ClassDef, prefix: str) -> Iterator[_Doc]:
    for node in parent.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            name = f"{prefix}.{node.name}"
            is_class = isinstance(node, ast.ClassDef)
            yield _Doc(name, "class" if is_class else "function", ast.get_docstring(node) or "")
            if isinstance(node, ast.ClassDef):
                yield from _member_docs(node, name)
