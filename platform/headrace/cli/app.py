"""The group ``headrace``: finds a command's module when it is asked for, and turns errors into exit codes."""

from __future__ import annotations

import difflib
import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from headrace.errors import HeadraceError, RequestError, UsageError

# Command -> its module. A module is imported only when its command runs, so that help is instant.
COMMANDS: dict[str, str] = {
    "up": "headrace.cli.up",
    "down": "headrace.cli.up",
    "status": "headrace.cli.up",
    "dev": "headrace.cli.dev",
    "deploy": "headrace.cli.endpoints",
    "call": "headrace.cli.call",
    "jobs": "headrace.cli.jobs",
    "logs": "headrace.cli.logs",
    "list": "headrace.cli.endpoints",
    "describe": "headrace.cli.endpoints",
    "delete": "headrace.cli.endpoints",
    "scale": "headrace.cli.endpoints",
    "rollback": "headrace.cli.endpoints",
    "nodes": "headrace.cli.nodes",
    "hosts": "headrace.cli.nodes",
    "instances": "headrace.cli.nodes",
    "runtimes": "headrace.cli.nodes",
    "images": "headrace.cli.images",
    "keys": "headrace.cli.keys",
    "secrets": "headrace.cli.secrets",
    "simulate": "headrace.cli.simulate",
    "doctor": "headrace.cli.doctor",
}
# The same one line that each command shows in its own help; kept here so that help imports nothing.
SUMMARIES: dict[str, str] = {
    "up": "Start the platform on this machine and stay until Ctrl-C.",
    "down": "Stop the platform that runs on this machine.",
    "status": "Show what runs: version, hosts, endpoints, instances.",
    "dev": "Serve a file's endpoints without Ray, reloading on save.",
    "deploy": "Deploy the endpoints of a Python file.",
    "call": "Call an endpoint and print its answer.",
    "jobs": "Submit, list, show, cancel and retry stored calls.",
    "logs": "Print an endpoint's output.",
    "list": "List endpoints.",
    "describe": "Show all that is known of an endpoint.",
    "delete": "Delete an endpoint, with its versions.",
    "scale": "Change an endpoint's bounds, or its instances now.",
    "rollback": "Go back to an earlier version.",
    "nodes": "List, add or remove nodes.",
    "hosts": "List hosts: one per node, with what they can take.",
    "instances": "List running instances.",
    "runtimes": "List runtimes: on which hosts they are, and what they can do.",
    "images": "List this machine's images, or push one to a registry.",
    "keys": "Create, list or revoke API keys.",
    "secrets": "Set, list or delete what endpoints must not carry in their code.",
    "simulate": "Say what policies would cost, and who would wait, on a trace.",
    "doctor": "Check this machine and say what would be in the way.",
}
DONE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used; a wrong name is answered with the closest."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; None when there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name])
        command = getattr(module, f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with our words when the name is unknown."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
            hint = f"did you mean `headrace {close[0]}`?" if close else "`headrace --help` lists them."
            raise click.UsageError(f"there is no command {name!r}: {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from `SUMMARIES`."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))


def _version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version  # noqa: PLC0415 - 20 ms that only this option needs

        click.echo(f"headrace {version('headrace')}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
def cli() -> None:
    """Serverless inference on Ray: decorate a function, get an HTTP endpoint that costs nothing when idle.

    Every command takes --json. The platform is found at HEADRACE_URL (default http://127.0.0.1:8700), the key
    in HEADRACE_API_KEY or, on the same machine, in the data directory.
    """


def run(argv: Sequence[str]) -> int:
    """Run one command; the exit code: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    try:
        result = cli.main(args=list(argv), prog_name="headrace", standalone_mode=False)
    except BrokenPipeError:
        # Whoever read our output has seen enough (`headrace logs x | head`). Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (KeyboardInterrupt, click.Abort):
        click.echo("", err=True)
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("HEADRACE_DEBUG"):
            raise
        return _failed(error, "--json" in argv)
    return result if isinstance(result, int) else DONE


def _failed(error: Exception, as_json: bool) -> int:
    """Say what went wrong: one line on stderr, and with ``--json`` a document on stdout too."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message())
        return WRONG_USE
    traceback = str(getattr(error, "traceback", ""))
    # Code that raises while it is imported has failed, as one whose load() raises; it is no wrong use.
    wrong = isinstance(error, click.ClickException | UsageError) and not traceback
    code = WRONG_USE if wrong else FAILED
    words = _one_line(_words(error))
    if traceback:
        click.echo(traceback.rstrip(), err=True)
    click.echo(f"headrace: {words}", err=True)
    if as_json:
        about: dict[str, Any] = {"message": words, "type": type(error).__name__, "exit_code": code}
        if isinstance(error, RequestError):
            about["problem"] = error.to_problem()
        if traceback:
            about["traceback"] = traceback
        click.echo(json.dumps({"error": about}, indent=2, default=str))
    return code


def _words(error: Exception) -> str:
    if isinstance(error, HeadraceError):
        return str(error)
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        if isinstance(error, click.NoSuchOption) and context is not None and context.parent is None:
            option = error.option_name
            if option in ("--json", "--url", "--data-dir"):
                return f"{option} goes behind the command, as in `headrace list {option}`."
        words = error.format_message()
        if context is not None and context.parent is not None:
            end = "" if words.endswith((".", "?")) else "."
            words = f"{words}{end} See `{context.command_path} --help`."
        return words
    return f"internal error: {type(error).__name__}: {error} (HEADRACE_DEBUG=1 shows where)"


def _one_line(text: str) -> str:
    return " ".join(text.split())
