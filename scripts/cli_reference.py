"""Writes docs/reference/cli.md from the commands themselves; a test compares. ``make docs`` runs it."""

from __future__ import annotations

from pathlib import Path

import click
from headrace.cli.app import cli

TARGET = Path(__file__).resolve().parents[1] / "docs" / "reference" / "cli.md"
INTRODUCTION = """# Command line

Written by `make docs` from the commands themselves.

Every command takes `--json`: its answer is then one JSON document on stdout (`logs -f` and `dev`: one per
line), a failure is `{"error": {"message", "type", "exit_code"}}`, and everything else goes to stderr. Exit
codes: 0 done, 1 failed, 2 wrong use, 130 interrupted. Errors are one line that says what to do.

The platform is found by `--url`, else `HEADRACE_URL`, else the platform of the data directory (`--data-dir`,
`HEADRACE_DATA_DIR`, `~/.headrace`), else `http://127.0.0.1:8700`. The key is `HEADRACE_API_KEY`, else the
admin key in the data directory, which is sent only to this machine. There is no option for a key: others on
the machine can read command lines.
"""


def commands(group: click.Group, context: click.Context) -> list[tuple[str, click.Command]]:
    """All commands with their whole names, those of groups included."""
    found: list[tuple[str, click.Command]] = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            below = click.Context(command, info_name=name, parent=context)
            found += [(f"{name} {inner}", one) for inner, one in commands(command, below)]
        else:
            found.append((name, command))
    return found


def section(name: str, command: click.Command) -> str:
    """One command in Markdown."""
    context = click.Context(command, info_name=f"headrace {name}")
    more = command.callback.__doc__ if command.callback is not None else None
    # A command without a summary of its own has its docstring for help.
    parts = dict.fromkeys(" ".join(part.split()) for part in (command.help, more) if part)
    about = " ".join(parts)
    lines = [
        f"## headrace {name}",
        "",
        about,
        "",
        f"`headrace {name} {' '.join(command.collect_usage_pieces(context))}`",
        "",
    ]
    rows: list[str] = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and not record[0].endswith("--help"):
            option, words = (" ".join(part.split()).replace("|", "\\|") for part in record)
            rows.append(f"| `{option}` | {words} |")
    return "\n".join([*lines, "| option | |", "|---|---|", *rows, ""])


def text() -> str:
    """The whole page."""
    context = click.Context(cli, info_name="headrace")
    parts = [INTRODUCTION, *(section(name, command) for name, command in commands(cli, context))]
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(text())
