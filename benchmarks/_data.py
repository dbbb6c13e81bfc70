"""
Rows to ask: as many as are wanted, each with a text of its own, written to Parquet chunk by chunk.

Deterministic: the same arguments give the same rows. Knows nothing of servers.
"""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_CHUNK = 10_000
_VOCABULARY = 2_000
_POOL_WORDS = 50_000
_DOCUMENTS_AT_ONCE = 100


def write_texts(folder: Path, num_rows: int, *, num_words: int, rows_per_document: int = 0) -> Path:
    """
    Return a Parquet file of `num_rows` rows ``id``, ``text``; about 6 characters a word. Made if not there.

    Args:
        folder: Where it lies.
        num_rows: In the file.
        num_words: Of each text.
        rows_per_document: So many texts begin alike and differ only at their ends; a hundred such documents take turns.
            0: each begins with a number of its own.
    """
    path = folder / f"texts_{num_rows}x{num_words}{f'x{rows_per_document}' * (rows_per_document > 0)}.parquet"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    pool, starts = _word_pool()
    scratch = path.with_suffix(".tmp")
    schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
    with pq.ParquetWriter(scratch, schema, compression="zstd") as writer:
        for first in range(0, num_rows, ROWS_PER_CHUNK):
            ids = range(first, min(first + ROWS_PER_CHUNK, num_rows))
            texts = [f"{number}: {_words(pool, starts, number, num_words)}" for number in ids]
            if rows_per_document:
                documents = [_document_of(number, rows_per_document) for number in ids]
                texts = [f"{_words(pool, starts, d, num_words)} {n}" for d, n in zip(documents, ids, strict=True)]
            writer.write_table(pa.table([list(ids), texts], schema=schema))
    scratch.replace(path)
    return path


def _document_of(row: int, rows_per_document: int) -> int:
    turn, row = divmod(row, _DOCUMENTS_AT_ONCE * rows_per_document)
    return turn * _DOCUMENTS_AT_ONCE + row % _DOCUMENTS_AT_ONCE


def _word_pool() -> tuple[str, list[int]]:
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 8))) for _ in range(_VOCABULARY)]
    words = rng.choices(vocabulary, k=_POOL_WORDS)
    starts, end = [], 0
    for word in words:
        starts.append(end)
        end += len(word) + 1
    return " ".join(words), starts


def _words(pool: str, starts: list[int], number: int, num_words: int) -> str:
    first = number * 7919 % (len(starts) - num_words)  # a prime, so that neighbours do not overlap
    return pool[starts[first] : starts[first + num_words] - 1]
