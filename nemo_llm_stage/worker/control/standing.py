"""How a run stands, as its driver tells the keeper of its folder. Knows counts; knows nothing of files."""

from __future__ import annotations

from dataclasses import dataclass, field

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.stage.status import StageStatus
from nemo_llm_stage.worker.moves import NO_MOVES, Moves


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFacts:
    """
    What a status says that does not change during a run.

    Attributes:
        job_id: The job's.
        num_rows: Rows of the job.
        is_exact: Whether they were counted.
        before: What earlier runs counted.
        command: What to run to resume the job; None where it was run from Python.
        elapsed_before_s: Seconds that earlier runs took.
    """

    job_id: str
    num_rows: int
    is_exact: bool
    before: Counters
    command: str | None = None
    elapsed_before_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Pace:
    """
    How fast a run goes.

    Attributes:
        rows_per_s: Over the last minute, as all of these.
        input_tokens_per_s: Of prompts.
        output_tokens_per_s: Of answers.
        eta_s: Seconds left at this speed; None where nobody can tell.
    """

    rows_per_s: float = 0.0
    input_tokens_per_s: float = 0.0
    output_tokens_per_s: float = 0.0
    eta_s: float | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """How a run stands, from its driver. `is_start`: whether some workers have not reported yet; `moves`: of rows."""

    phase: str = "starting"
    counters: Counters = field(default_factory=Counters)
    stage: StageStatus = field(default_factory=StageStatus)
    pace: Pace = Pace()
    is_start: bool = False
    moves: Moves = NO_MOVES
