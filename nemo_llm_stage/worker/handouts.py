"""What a run hands out to its workers: the partitions that are left, and what its folder says of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from nemo_llm_stage.client.endpoints.share import WorkerPlace
from nemo_llm_stage.dataset.folder import JOURNAL, RAW, OutputFolder
from nemo_llm_stage.dataset.journal_stream import STREAMS
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.dataset.writing import writing_to
from nemo_llm_stage.worker.dispatch import Handout
from nemo_llm_stage.worker.lost_answers import gather_answers
from nemo_llm_stage.worker.spec import WorkerSpec


def handout_of(spec: WorkerSpec, partitions: Sequence[Partition], num_workers: int) -> Handout:
    """Return a handout of `partitions` to at most `num_workers`: fewer if there are not enough rows for all."""
    output = OutputFolder(spec.output_url, spec.settings.output_format, spec.layout)
    with writing_to(spec.output_url):
        _, folders = output.state.contents()
    if STREAMS in folders:
        gather_answers(spec, partitions)
        folders.add(JOURNAL)
    num_rows = len(partitions) * spec.rows_per_partition
    limit = spec.stage.total_limit(WorkerPlace(0, num_workers))
    num_workers = min(num_workers, max(len(partitions), num_rows // limit))
    return Handout(
        partitions,
        num_workers=num_workers,
        max_concurrent_requests=spec.stage.total_limit(WorkerPlace(0, num_workers)),
        rows_per_partition=spec.rows_per_partition,
        can_cut=spec.retry_kinds is None,
        hedges=spec.retry_kinds is None and spec.settings.hedge == "auto",
        fresh=_fresh(output, folders, partitions) if spec.retry_kinds is None else (),
    )


def _fresh(output: OutputFolder, folders: Collection[str], partitions: Sequence[Partition]) -> list[int]:
    """Return the indexes of pending partitions without a journal or kept answers: one look for all of them."""
    stems = {part.index: output.name_of(part).partition(".")[0] for part in partitions}
    begun: set[str] = set()
    with writing_to(output.url):
        if JOURNAL in folders:
            begun |= output.journal_folder().folders()
        if RAW in folders:
            begun |= output.raw_folder().folders()
    return [index for index, stem in stems.items() if stem not in begun]
