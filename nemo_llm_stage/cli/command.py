"""What all commands share: how they end, and how ``--help`` looks."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable
from typing import Any

import click

from nemo_llm_stage.errors import ConfigError, LLMStageError, RunStoppedError, TooManyFailedRowsError
from nemo_llm_stage.text import printable

EXIT_RUN, EXIT_INPUT, EXIT_FAILED_ROWS, EXIT_STOPPED, EXIT_SIGNAL = 1, 2, 3, 4, 128
EXIT_CODES = {
    0: "every row is accounted for; rows may have failed, within `max_failed_rows`",
    EXIT_RUN: "the run broke, `verify` found rows missing, or `doctor` found a problem; what is committed stays",
    EXIT_INPUT: "the settings, the input or the output folder cannot work; no request was paid for",
    EXIT_FAILED_ROWS: "more rows failed than `max_failed_rows` allows; the output stays, without `_SUCCESS`",
    EXIT_STOPPED: "a limit or an order stopped the run; run the same command again to resume",
    EXIT_SIGNAL + signal.SIGINT: "stopped by Ctrl-C; run the same command again to resume",
    EXIT_SIGNAL + signal.SIGTERM: "stopped by SIGTERM (spot instance, Slurm, Kubernetes); run it again to resume",
}
"""Exit code → what it says to a script."""

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def port_option(default: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option ``--port`` of a command that serves until Ctrl-C."""
    return click.option(
        "--port",
        type=click.IntRange(0, 65535),
        default=default,
        show_default=True,
        help="Port to listen on; 0 takes a free one.",
    )


def _exit_code_of(error: LLMStageError) -> int:
    if isinstance(error, ConfigError):
        return EXIT_INPUT
    if isinstance(error, RunStoppedError):
        return EXIT_STOPPED
    return EXIT_FAILED_ROWS if isinstance(error, TooManyFailedRowsError) else EXIT_RUN


class Command(click.Command):
    """
    Shows a user's mistake as one message, never as a traceback.

    Attributes:
        on_interrupt: What Ctrl-C ends with.
    """

    on_interrupt = "stopped; run the same command to resume."

    def invoke(self, context: click.Context) -> Any:
        """Run the command; end with a message and an exit code if it fails."""
        try:
            return super().invoke(context)
        except LLMStageError as error:
            click.secho(f"error: {printable(str(error))}", fg="red", err=True)
            context.exit(_exit_code_of(error))
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever reads what is shown has read enough; click ends quietly
                raise
            click.secho(f"error: {printable(str(error))}", fg="red", err=True)
            context.exit(EXIT_RUN)
        except KeyboardInterrupt as interrupt:
            click.echo(str(interrupt) or self.on_interrupt, err=True)
            context.exit(EXIT_SIGNAL + getattr(interrupt, "signum", signal.SIGINT))

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under the headings of their sections."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(context):
            record = parameter.get_help_record(context)
            if record is not None:
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
        for section, records in sections.items():
            with formatter.section(section):
                formatter.write_dl(records)
        if isinstance(self, click.Group):
            self.format_commands(context, formatter)


class Commands(Command, click.Group):
    """A group of commands; its help shows the whole first sentence of each."""

    command_class = Command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each command with its first sentence."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.commands[name].get_short_help_str(1000)) for name in self.commands])


def options(section: str, *options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return one decorator for all `options`, which ``--help`` shows under the heading `section`."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
            command.__click_params__[-1].section = section
        return command

    return decorate
