"""
The clients of a stage's columns, of whatever kind users bring.

Knows columns and clients; sends nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nemo_llm_stage.client.adapt import as_async_client
from nemo_llm_stage.client.llm_client import AsyncLLMClient
from nemo_llm_stage.rows.column import Column


def adapt_clients(columns: Sequence[Column], uses: Mapping[str, tuple[str, ...]]) -> dict[str, AsyncLLMClient]:
    """
    Return output column → its client, columns without dependencies first; columns share a client as they did before.

    Raises:
        ConfigError: A client is none.
    """
    adapted: dict[int, AsyncLLMClient] = {}
    for column in columns:
        if id(column.client) not in adapted:
            adapted[id(column.client)] = as_async_client(column.client)
    ordered = sorted(columns, key=lambda column: bool(uses[column.name]))
    return {column.name: adapted[id(column.client)] for column in ordered}
