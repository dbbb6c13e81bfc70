"""
A window over the chunks of one partition: read ahead, run together, taken in order.

A slow row holds up the chunks behind it in writing, not in running. Knows chunks and futures; knows nothing of stages
or files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future

from nemo_llm_stage.core import Outcome
from nemo_llm_stage.worker.backlog import Backlog
from nemo_llm_stage.worker.chunk import ROWS_PER_CHUNK, Chunk

MAX_OPEN_ROWS = 16 * ROWS_PER_CHUNK
"""Rows of one partition that are read and not yet written. Bounds memory where one row takes very long."""


def run_ahead(
    chunks: Iterable[Chunk],
    submit: Callable[[Chunk], Future[list[Outcome]]],
    backlog: Backlog,
    on_read: Callable[[], None],
) -> Iterator[tuple[Chunk, list[Outcome]]]:
    """
    Yield chunks in order with their outcomes, while the rows of later chunks run.

    Args:
        chunks: Read one by one, as long as `backlog` has room and at most `MAX_OPEN_ROWS` are open.
        submit: Starts a chunk's rows.
        backlog: Of the worker, over all its partitions.
        on_read: Called after the last chunk is submitted.

    Raises:
        Exception: What `submit` or a future raised; the other futures are cancelled.
    """
    window: deque[tuple[Chunk, Future[list[Outcome]]]] = deque()
    num_open = 0

    def may_read() -> bool:
        return num_open < MAX_OPEN_ROWS and backlog.has_room

    try:
        for chunk in chunks:
            future = submit(chunk)
            future.add_done_callback(backlog.notify)
            window.append((chunk, future))
            num_open += chunk.table.num_rows
            while window:
                with backlog.changed:
                    backlog.changed.wait_for(lambda: window[0][1].done() or may_read())
                if not window[0][1].done():
                    break
                oldest, future = window.popleft()
                yield oldest, future.result()
                num_open -= oldest.table.num_rows
        on_read()
        while window:
            oldest, future = window.popleft()
            yield oldest, future.result()
    finally:
        for _, future in window:
            future.cancel()
