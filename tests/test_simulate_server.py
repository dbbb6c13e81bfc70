"""The simulated server from the command line."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from dataclasses import fields

import pytest
from click.testing import CliRunner

from nemo_llm_stage import AsyncHTTPClient
from nemo_llm_stage.cli import main
from nemo_llm_stage.testing import ServerConfig, expected_answer

HELLO = [{"role": "user", "content": "Hello"}]


def test_each_setting_of_the_server_is_a_flag_with_its_meaning() -> None:
    """No field of ServerConfig is without a flag, no flag without words."""
    text = CliRunner().invoke(main, ["simulate-server", "--help"], terminal_width=200).output
    for item in fields(ServerConfig):
        assert re.search(rf"^  --{item.name.replace('_', '-')}\b.*? {{2}}[A-Z\"a-z]", text, re.MULTILINE | re.DOTALL)


def test_it_serves_with_the_settings_and_faults_given() -> None:
    """Flags reach the server, and a fault its requests."""
    command = [sys.executable, "-m", "nemo_llm_stage", "simulate-server", "--port", "0"]
    settings = ["--model", "a", "--model", "b", "--no-prefix-caching", "--fault", "400@poison"]
    with subprocess.Popen([*command, *settings], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[0]
        client = AsyncHTTPClient(url, max_retries=0)
        answer = asyncio.run(client.query_model(messages=HELLO, model="b"))
        with pytest.raises(Exception, match="400"):
            asyncio.run(client.query_model(messages=[{"role": "user", "content": "poison"}], model="a"))
        process.terminate()
        assert process.wait() == 0
    assert answer == [expected_answer(HELLO)]


def test_a_setting_that_cannot_work_is_one_line() -> None:
    """Exit code 2, and no traceback."""
    result = CliRunner().invoke(main, ["simulate-server", "--fault", "nonsense"])
    assert result.exit_code == 2
    assert "nonsense" in result.output
