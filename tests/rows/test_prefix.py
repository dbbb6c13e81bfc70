"""Rows that share the beginning of their prompt stand together."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from nemo_llm_stage.rows.prefix import order_by_prefix


def prompts_of(num_documents: int, num_questions: int) -> list[bytes]:
    words = random.Random(0)
    documents = [f"document {words.random()} " * 20 for _ in range(num_documents)]
    return [f"You are kind. {document}? {q}".encode() for document in documents for q in range(num_questions)]


def test_questions_about_one_document_stand_together() -> None:
    """Whatever the order they came in; a document changes as seldom as it can."""
    prompts = prompts_of(10, 20)
    random.Random(1).shuffle(prompts)
    order = order_by_prefix(prompts)
    documents = [prompts[index].split(b"?")[0] for index in order.indices]
    assert sum(one != other for one, other in pairwise(documents)) == 9
    assert order.num_common_bytes == len(b"You are kind. document 0.")
    assert order.shared > 0.6
    assert order.shared_as_given < 0.15
    assert order.is_useful


def test_groups_and_members_keep_their_order() -> None:
    """Of first appearance, so that nothing moves without a reason."""
    a, b = b"a" * 100, b"b" * 100
    assert order_by_prefix([b + b"1", a + b"1", b + b"2", a + b"2"]).indices == [0, 2, 1, 3]


def test_a_common_prefix_alone_is_no_reason() -> None:
    """It is in the cache whatever the order."""
    prompts = [b"system " * 100 + random.Random(n).randbytes(200) for n in range(50)]
    order = order_by_prefix(prompts)
    assert order.indices == list(range(50))
    assert not order.is_useful


def test_an_order_that_is_good_already_is_left() -> None:
    """A dataset sorted by document."""
    order = order_by_prefix(prompts_of(10, 20))
    assert order.indices == list(range(200))
    assert not order.is_useful


def test_no_prompts() -> None:
    """And one, and empty ones."""
    assert order_by_prefix([]).indices == []
    assert order_by_prefix([b""]).indices == [0]
    assert order_by_prefix([b"", b"", b"x"]).indices == [0, 1, 2]


@given(st.lists(st.text("ab", max_size=300).map(str.encode), max_size=30))
def test_every_prompt_is_there_once(prompts: list[bytes]) -> None:
    """And the shares are shares."""
    order = order_by_prefix(prompts)
    assert sorted(order.indices) == list(range(len(prompts)))
    assert 0 <= order.shared <= 1
    assert 0 <= order.shared_as_given <= 1


def test_prompts_that_begin_alike_are_of_one_group() -> None:
    """The common beginning of all makes none, nor does what a prompt has alone."""
    system = b"You read documents closely. " * 40
    documents = [bytes([65 + number]) * 2000 for number in range(8)]
    prompts = [system + document + str(question).encode() * 80 for document in documents for question in range(5)]
    order = order_by_prefix([*prompts, system + b"?" * 3000])
    groups = [order.groups[5 * number : 5 * number + 5] for number in range(8)]
    assert all(len(set(group)) == 1 and group[0] is not None for group in groups)
    assert len({group[0] for group in groups}) == 8
    assert order.groups[-1] is None
    assert order.has_groups


def test_a_row_without_a_prompt_hides_nothing_that_the_others_share() -> None:
    """One that is skipped, for example: the long beginning of all the others is still no group."""
    system = b"You read documents closely. " * 400
    prompts = [system + bytes([65 + number % 8]) * 3000 + str(number).encode() for number in range(80)]
    order = order_by_prefix([b"", *prompts])
    assert order.num_common_bytes == len(system)
    assert order.has_groups
    assert order.groups[0] is None
    assert 0 < order.shared_as_given + 0.01 < order.shared


def test_what_half_of_all_prompts_share_is_no_group() -> None:
    """It would leave servers without work."""
    prompts = [prefix * 2000 + str(number).encode() for prefix in (b"a", b"b") for number in range(20)]
    assert not order_by_prefix(prompts).has_groups


def test_a_group_has_the_same_number_in_each_process() -> None:
    """Workers that share servers send it to the same one, also where their windows have other rows."""
    prompts = prompts_of(10, 20)
    code = (
        "import json, sys; from nemo_llm_stage.rows.prefix import order_by_prefix\n"
        "print(order_by_prefix([prompt.encode() for prompt in json.load(sys.stdin)]).groups)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([prompt.decode() for prompt in prompts]),
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    groups = order_by_prefix(prompts).groups
    assert len(set(groups)) == 10
    assert shown.strip() == str(groups)
    assert order_by_prefix(prompts[20:]).groups == groups[20:]
