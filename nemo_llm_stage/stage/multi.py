"""
Several generated columns in one pass, where later prompts may use earlier answers.

Knows which column uses which; asking is `row`'s, running is `base`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.stage.base import Stage
from nemo_llm_stage.stage.stage import LLMStage


class MultiColumnStage(Stage):
    """
    Adds the columns of several stages in one pass over the rows.

    A prompt, a parameter or `skip_when` that mentions another stage's column, e.g. ``{{ summary }}``, waits for that
    row's answer; columns that do not use each other are asked side by side. No row waits for another. Where a column
    fails, those that use it fail with ``dependency: …``, and where it was skipped they are skipped; the others are
    asked. A prompt that is a function, or uses ``{{ row }}``, sees the columns of the stages that stand before it.

    Stages that share a client share its limit; each client has a limit of its own. Can be pickled at any time.

    Args:
        stages: One for each column, in the order of the columns.
        keep_if: An expression over columns and answers; rows for which it is false are dropped and counted. A row
            without one of the answers that the expression uses stays.

    Raises:
        ConfigError: Columns use each other in a circle or have the same name, or a stage has a setting that is for all
            of them.
    """

    def __init__(self, stages: Sequence[LLMStage], *, keep_if: str | None = None) -> None:
        super().__init__(keep_if)
        self.stages = tuple(stages)
        for stage in self.stages:
            _check_member(stage)
        names = [field.name for stage in self.stages for field in stage.fields]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"there would be two columns {twice[0]!r}; choose another output_column.")
        sources = {name: stage.output_column for stage in self.stages for name in stage.columns.answers}
        self._uses = {stage.output_column: self._uses_of(stage, sources) for stage in self.stages}
        _check_circles(self._uses)
        if self.keep_if is not None:
            self.keep_if.check_types(self.fields)

    @property
    def members(self) -> Sequence[LLMStage]:
        """The stages, in the order of their columns."""
        return self.stages

    def uses(self, member: LLMStage) -> tuple[str, ...]:
        """Return the output columns that a member's prompt uses."""
        return self._uses[member.output_column]

    def describe(self) -> dict[str, Any]:
        """Return everything that decides what the answers are, as JSON-able values, without secrets."""
        return {
            "columns": {stage.output_column: stage.describe() for stage in self.stages},
            "keep_if": None if self.keep_if is None else self.keep_if.source,
        }

    def _uses_of(self, stage: LLMStage, sources: dict[str, str]) -> tuple[str, ...]:
        used = [sources[name] for name in sorted(stage.own_columns) if name in sources]
        if stage.prompt.needs_all_columns:
            used += [other.output_column for other in self.stages[: self.stages.index(stage)]]
        return tuple(dict.fromkeys(used))

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


def _check_member(stage: object) -> None:
    if not isinstance(stage, LLMStage):
        raise ConfigError(f"a MultiColumnStage is made of LLMStages, not of {type(stage).__name__}.")
    if stage.keep_if is not None:
        raise ConfigError(f"{stage.output_column}: keep_if is for the whole row; give it to the MultiColumnStage.")
    if stage.explode:
        raise ConfigError(f"{stage.output_column}: explode makes rows of answers; do that in a stage of its own.")


def _check_circles(uses: dict[str, tuple[str, ...]]) -> None:
    try:
        TopologicalSorter(uses).prepare()
    except CycleError as error:
        circle = " → ".join(reversed(error.args[1]))
        raise ConfigError(f"columns use each other in a circle: {circle}.") from None
