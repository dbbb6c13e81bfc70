"""A server's command: what stands in braces is put in, and what is not known is refused."""

from __future__ import annotations

import pytest

from nemo_llm_stage import ConfigError
from nemo_llm_stage.servers.plan import ServerPlan, Spot, check_command


def test_placeholders_stand_for_what_the_server_gets() -> None:
    """Anywhere in a word; doubled braces are plain ones."""
    plan = ServerPlan(
        words=("serve", "{model}", "--port={port}", "--gpus", "{gpu_ids}", '{{"tp": {num_gpus}}}'),
        model="m",
        num_gpus=2,
    )
    spot = Spot(port=8001, gpu_ids=("4", "5"))
    assert plan.command(spot) == ["serve", "m", "--port=8001", "--gpus", "4,5", '{"tp": 2}']


def test_each_node_of_a_server_has_its_rank() -> None:
    """And the further ones may have a command of their own."""
    plan = ServerPlan(
        words=("serve", "{node_rank}/{num_nodes}", "{head_ip}:{head_port}"),
        worker_words=("join", "{node_rank}", "{head_ip}"),
        num_nodes=2,
    )
    assert plan.command(Spot(head_ip="10.0.0.1", head_port=7)) == ["serve", "0/2", "10.0.0.1:7"]
    assert plan.command(Spot(rank=1, head_ip="10.0.0.1")) == ["join", "1", "10.0.0.1"]


def test_what_one_machine_can_never_hold_is_known() -> None:
    """Servers would wait for room for ever: for GPUs, for CPUs, for another node."""
    plan = ServerPlan(words=("serve",), num_gpus=1, num_cpus=2)
    assert plan.fits(2, num_gpus=2, num_cpus=4)
    assert not plan.fits(2, num_gpus=1, num_cpus=4)
    assert not plan.fits(2, num_gpus=2, num_cpus=3)
    assert not ServerPlan(words=("serve",), num_gpus=0, num_nodes=2).fits(1, num_gpus=8, num_cpus=8)


@pytest.mark.parametrize(
    ("word", "message"),
    [("{prot}", "did you mean 'port'"), ("{}", "known are"), ('{"a": 1}', "plain braces"), ("{port", "plain braces")],
)
def test_what_is_no_placeholder_is_refused(word: str, message: str) -> None:
    """With the nearest one, or how a brace is written."""
    with pytest.raises(ConfigError, match=message):
        check_command(["serve", word])
