"""
Where workers keep answers on object stores, and how those of dead workers get to whoever runs their rows.

Knows streams and settings; knows no rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from nemo_llm_stage.config.job_settings import JobSettings
from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.gather import gather, gather_all
from nemo_llm_stage.dataset.journal_stream import JournalStream, worker_folder
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.dataset.writing import writing_to
from nemo_llm_stage.worker.spec import WorkerSpec

logger = logging.getLogger(__name__)

OnLost = Callable[[str, bool], None]
"""Called with the name of a worker that is lost, and whether it is dead, before its tasks go to others."""


def open_stream(state: Folder, index: int, settings: JobSettings) -> JournalStream | None:
    """Return where a worker puts the answers of its partitions; None where each has a journal of its own."""
    if state.is_local or settings.keep_raw:  # what is kept is kept by partition
        return None
    return JournalStream(worker_folder(state, index), settings.flush_interval)


def lost_answers_of(spec: WorkerSpec) -> OnLost:
    """Return what puts the answers of a lost worker where others look for them."""
    output = OutputFolder(spec.output_url, spec.settings.output_format, spec.layout)

    def save(worker: str, is_dead: bool) -> None:
        if output.state.is_local or spec.settings.keep_raw:
            return
        try:
            gather(output.state, int(worker), removes=is_dead)
        except OSError as error:
            logger.warning("answers of worker %s may be asked for again: %s", worker, error)

    return save


def gather_answers(spec: WorkerSpec, partitions: Iterable[Partition]) -> None:
    """
    Put the answers to `partitions` that workers of earlier runs left where others look for them.

    Raises:
        RunError: The store failed.
    """
    output = OutputFolder(spec.output_url, spec.settings.output_format, spec.layout)
    if not output.state.is_local:
        with writing_to(spec.output_url):
            gather_all(output.state, {output.name_of(partition).partition(".")[0] for partition in partitions})


def nothing_to_save(worker: str, is_dead: bool) -> None:
    """Do nothing: the answers are where all look for them."""
