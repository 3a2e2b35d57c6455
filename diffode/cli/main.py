"""The ``diffode`` command: finds its sub-commands by name and turns diffode's errors into messages and exit codes."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from diffode import __version__
from diffode.errors import DiffodeError

#: Sub-commands, one file each, with the summary shown by ``--help``.
_COMMANDS = {
    "bench": "Run a suite, print a ranked table and write a report.",
    "report": "Write the report of a suite from stored results.",
    "list": "List targets, paths, grids, solvers, metrics or suites.",
    "show": "Show a target's card, or a solver and its tableau on a small grid.",
    "recommend": "Rank stored results for a budget, and say how sure that is.",
    "verify": "Hold a field against the equations that define it.",
    "check": "Judge a sampler, ours or anyone's: order, limit, evaluations, repeatability.",
    "check-field": "Find the usual mistakes in a field of your own, and their fixes.",
    "train": "Train a sampler for a target and a number of evaluations.",
    "sample": "Draw samples with a solver; write them and a picture.",
}


def import_option() -> click.Option:
    """The option ``--import``, which imports before the command looks anything up."""
    return click.Option(
        ["--import"], multiple=True, expose_value=False, is_eager=True, callback=_import,
        help="Module or .py file that registers your own solvers, targets, paths, grids or metrics.",
    )  # fmt: skip


def _import(context: click.Context, option: click.Parameter, modules: tuple[str, ...]) -> None:
    if modules and not context.resilient_parsing:
        from diffode.extensions import import_extension

        for module in modules:
            import_extension(module)


class _LazyGroup(click.Group):
    """Imports a command's file when it is called, not for the list of commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"diffode.cli.{cmd_name.replace('-', '_')}_command").command
        if not any("--import" in option.opts for option in command.params):
            # Commands that hand imports on to their workers have an option of their own.
            command.params.append(import_option())
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        from diffode.errors import suggestion

        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no such command {args[0]!r}{suggestion(args[0], _COMMANDS)}; commands: {', '.join(_COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="diffode")
def command() -> None:
    """Diffusion samplers measured against exact targets.

    \b
    Example:  diffode bench quick
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Exit codes: 0 done, 1 a check failed, 2 wrong usage, 3 a numerical failure."""
    try:
        code = command.main(args=arguments, prog_name="diffode", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except DiffodeError as error:
        click.echo(f"diffode: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("diffode: interrupted; stored results stay, and the same command goes on from there", err=True)
        sys.exit(130)
