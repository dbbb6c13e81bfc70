"""
What dead workers left in their streams, sorted into the journals of the partitions, which whoever runs them reads.

Knows lines; knows nothing of what they say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from nemo_llm_stage.dataset.failpoints import reach
from nemo_llm_stage.dataset.journal_stream import STREAMS, lines_in, read_all, worker_folder
from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.dataset.summary import TMP

_NUM_THREADS = 16
_WORKERS_AT_ONCE = 4
"""Workers whose answers are in memory at the same time."""


def gather(state: Folder, index: int, stems: Collection[str] | None = None, *, removes: bool = True) -> None:
    """
    Sort what a worker left in its streams into the journals of its partitions.

    Whoever dies in between leaves the streams or the journals, or both: answers that are in both count once.

    Args:
        state: The job's state folder.
        index: The worker's.
        stems: Names of the partitions whose answers are needed, without ending; None for all.
        removes: Whether the streams are removed then: the worker is dead.

    Raises:
        OSError: The store failed.
    """
    folder = worker_folder(state, index)
    names = sorted(folder.names())
    parts: defaultdict[tuple[str, str], dict[bytes, None]] = defaultdict(dict)
    for stem, attempt, line in lines_in(read_all(folder, names)):
        if stems is None or stem in stems:
            parts[stem, attempt][line] = None

    def put(part: tuple[str, str]) -> None:
        (stem, attempt), lines = part, parts[part]
        name = f"journal/{stem}/{attempt}-{names[-1].rpartition('-')[2]}"
        state.publish_bytes(b"".join(b"%b\n" % line for line in lines), name, scratch_sub=TMP)

    reach("gather.before")
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        list(pool.map(put, parts))
    reach("gather.between")
    if removes and names:
        folder.remove_all(names)
    reach("gather.after")


def gather_all(state: Folder, stems: Collection[str]) -> None:
    """Gather what all workers of earlier runs left; see `gather`."""
    streams = Folder(f"{state.url}/{STREAMS}")
    indexes = [int(name) for name in streams.folders() if name.isdigit()]
    with ThreadPoolExecutor(_WORKERS_AT_ONCE) as pool:
        list(pool.map(lambda index: gather(state, index, stems), indexes))


def remove_streams(state: Folder) -> None:
    """Remove all streams: every partition is committed."""
    streams = Folder(f"{state.url}/{STREAMS}")
    for name in [] if state.is_local else streams.folders():
        folder = Folder(f"{streams.url}/{name}")
        folder.remove_all(folder.names())
