"""The settings of a job: one object, checked where it is made, whoever makes it."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any, get_type_hints

import numpy as np
import pytest

from nemo_llm_stage import ConfigError, retry_failed, run_job
from nemo_llm_stage.config.job import JobConfig
from nemo_llm_stage.config.job_settings import JobKeywords, JobSettings, WorkerKeywords
from nemo_llm_stage.config.load import make_config

BASE = {"input": "in", "output": "out", "client": "local", "prompt": "a", "output_column": "x"}
NAMES = [field.name for field in fields(JobSettings)]
DEFAULTS = {field.name: field.default for field in fields(JobSettings)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"actors": 0}, "actors is 0; it must be a whole number of at least 1 or 'auto'."),
        ({"actors": "3"}, "actors is '3'; it must be a whole number of at least 1 or 'auto'."),
        ({"actors": True}, "actors is True; it must be a whole number of at least 1 or 'auto'."),
        ({"engine": "spark"}, "engine is 'spark'; it must be 'ray' or 'local'."),
        ({"flush_interval": 0}, "flush_interval is 0; it must be a number above 0."),
        ({"flush_interval": float("nan")}, "flush_interval is nan; it must be a number above 0."),
        ({"keep_raw": "yes"}, "keep_raw is 'yes'; it must be true or false."),
        ({"rows_per_partition": 0}, "rows_per_partition is 0; it must be a whole number of at least 1 or None."),
        ({"max_failed_rows": 1.5}, "max_failed_rows is 1.5; it must be a number of rows (5), a fraction"),
        ({"max_failed_rows": float("nan")}, "max_failed_rows is nan; it must be a number of rows (5), a fraction"),
        ({"max_failed_rows": -1}, "max_failed_rows is -1; it must be a number of rows (5), a fraction"),
    ],
)
def test_a_value_that_cannot_work_is_refused(settings: dict[str, Any], message: str) -> None:
    """In Python and in a job file; the message of Python names the setting, the value and what it must be."""
    with pytest.raises(ConfigError) as failure:
        JobSettings(**settings)
    assert message in str(failure.value)
    if not isinstance(next(iter(settings.values())), str | bool) or "engine" in settings:  # YAML has "3" and yes
        with pytest.raises(ConfigError, match=next(iter(settings))):
            make_config({**BASE, **settings})


def test_every_mistake_is_told_at_once() -> None:
    """A line for each."""
    with pytest.raises(ConfigError) as failure:
        JobSettings(actors=0, num_cpus_per_actor=0, output_format="csv")  # type: ignore[arg-type]
    assert [line.split()[0] for line in str(failure.value).splitlines()] == [
        "actors",
        "num_cpus_per_actor",
        "output_format",
    ]


def test_numbers_of_numpy_are_numbers() -> None:
    """Notebooks compute with them."""
    assert JobSettings(actors=np.int64(3), flush_interval=np.float64(0.5)).actors == 3


def test_a_job_file_gives_the_same_object() -> None:
    """With what the file does not say at its default."""
    given: dict[str, Any] = {"engine": "local", "actors": 3, "max_failed_rows": 7, "flush_interval": 0.5}
    assert make_config({**BASE, **given}).settings == JobSettings(**given)
    assert make_config(BASE).settings == JobSettings()


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_is_the_same_everywhere(name: str) -> None:
    """A field of a job file and a keyword of `run_job`, with the same type and default."""
    assert JobConfig.model_fields[name].default == DEFAULTS[name]
    assert inspect.signature(run_job).parameters[name].default == DEFAULTS[name]
    assert get_type_hints(JobKeywords)[name] == get_type_hints(JobSettings)[name]


@pytest.mark.parametrize(("function", "keywords"), [(run_job, JobKeywords), (retry_failed, WorkerKeywords)])
def test_signatures_list_the_settings(function: Any, keywords: Any) -> None:
    """What `help()` and notebooks show is what is taken."""
    names = inspect.signature(function).parameters.keys()
    assert get_type_hints(keywords).keys() <= names
    assert not (set(NAMES) - get_type_hints(keywords).keys()) & names
    with pytest.raises(TypeError, match="actrs"):
        function(**dict.fromkeys(names), actrs=1)
