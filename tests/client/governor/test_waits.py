"""How long requests wait is told by the times and lengths of their answers."""

from __future__ import annotations

import random

import pytest

from nemo_llm_stage.client.governor.waits import MIN_ANSWERS, Waits


def waits_of(wait_s: float, per_token_s: float, lengths: list[int], noise: float = 0.0) -> Waits:
    waits, rng = Waits(), random.Random(1)
    for length in lengths:
        waits.add((wait_s + per_token_s * length) * (1 + noise * rng.uniform(-1, 1)), length)
    return waits


LENGTHS = [random.Random(number).randrange(50, 400) for number in range(200)]


@pytest.mark.parametrize("wait_s", [0.0, 0.5, 4.0])
def test_the_wait_is_what_does_not_grow_with_the_length(wait_s: float) -> None:
    """Also where the times vary."""
    share = waits_of(wait_s, 0.02, LENGTHS, noise=0.05).share(200)
    assert share == pytest.approx(wait_s / (wait_s + 4), abs=0.03)


def test_the_first_answers_to_come_back_are_short_and_tell_the_same() -> None:
    """The share is that of an answer of usual length."""
    assert waits_of(2.0, 0.02, [length for length in LENGTHS if length < 120]).share(200) == pytest.approx(1 / 3)


@pytest.mark.parametrize("lengths", [[100] * 50, LENGTHS[: MIN_ANSWERS - 1], [0] * 50])
def test_too_few_answers_or_answers_of_one_length_tell_nothing(lengths: list[int]) -> None:
    """There is no line through them."""
    assert waits_of(1.0, 0.02, lengths).share(200) is None


def test_times_that_do_not_grow_with_the_length_tell_nothing() -> None:
    """A server that answers after the same time whatever is asked."""
    assert waits_of(1.0, 0.0, LENGTHS).share(200) is None
