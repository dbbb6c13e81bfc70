"""
MultiColumnStage: the user's door to a stage of several columns, where later prompts may use earlier answers.

Knows stages of one column, and what does not fit into a stage of several.
"""

from __future__ import annotations

from collections.abc import Sequence

from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.stage.llm_stage import LLMStage
from nemo_llm_stage.stage.stage import Stage


class MultiColumnStage(Stage):
    """
    Adds the columns of several stages in one pass over the rows.

    A prompt, a parameter or `skip_when` that mentions another stage's column, e.g. ``{{ summary }}``, waits for that
    row's answer; independent columns run side by side. No row waits for another. If a column fails, those that use it
    fail with ``dependency: …``; if it was skipped, they are skipped. The other columns are not affected. A prompt that
    is a function, or uses ``{{ row }}``, sees the columns of the stages before it.

    Stages that share a client share its limit; each client has a limit of its own. Can be pickled at any time.

    Args:
        stages: One for each column, in the order of the columns.
        keep_if: An expression over columns and answers; rows for which it is false are dropped and counted. A row
            without one of the answers that the expression uses is kept.

    Raises:
        ConfigError: Columns use each other in a circle or have the same name, or a stage has `keep_if` or `explode`.
    """

    def __init__(self, stages: Sequence[LLMStage], *, keep_if: str | None = None) -> None:
        self.stages = tuple(stages)
        for stage in self.stages:
            _check_single(stage)
        super().__init__([stage.column for stage in self.stages], keep_if)

    def __repr__(self) -> str:
        """Without the clients: they may hold a key."""
        return f"MultiColumnStage({list(self.stages)!r})"


def as_stage(stage: Stage | Sequence[LLMStage]) -> Stage:
    """
    Return a stage, or several as one.

    Raises:
        ConfigError: It is neither.
    """
    if isinstance(stage, Stage):
        return stage
    if isinstance(stage, Sequence) and stage:
        return MultiColumnStage(stage)
    raise ConfigError(f"stage must be an LLMStage, a MultiColumnStage or a list of stages, not {stage!r:.100}.")


def _check_single(stage: object) -> None:
    if not isinstance(stage, LLMStage):
        raise ConfigError(f"a MultiColumnStage is made of LLMStages, not of {type(stage).__name__}.")
    if stage.keep_if is not None:
        raise ConfigError(f"{stage.output_column}: keep_if is for the whole row; give it to the MultiColumnStage.")
    if stage.column.explode:
        raise ConfigError(f"{stage.output_column}: explode makes rows of answers; do that in a stage of its own.")
