"""The ``diffode`` command, which finds sub-commands by name and turns diffode's errors into messages and exit codes."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn, TextIO

import click

from diffode import __version__
from diffode.errors import DiffodeError

#: Sub-commands, one file each, with the summary shown by ``--help``.
_COMMANDS = {
    "bench": "Run a suite, print a ranked table and write a report.",
    "report": "Write the report of a suite from stored results.",
    "export": "Write stored results as CSV or Parquet for other programs.",
    "list": "List targets, paths, grids, solvers, metrics, bridges or suites.",
    "show": "Show a target's card, or a solver and its tableau on a small grid.",
    "recommend": "Rank stored results for a budget, and say how sure that is.",
    "verify": "Hold a field against the equations that define it.",
    "check": "Judge a sampler, of diffode or of others: order, limit, evaluations, repeatability.",
    "check-field": "Find the usual mistakes in a field of your own, and their fixes.",
    "check-map": "Judge a flow map, learned or your own, against the exact flow and its law.",
    "train": "Train a sampler for a target and a number of evaluations.",
    "sample": "Draw samples with a solver; write them and a picture.",
    "memory": "Run memories along a signal; print their errors and draw them.",
    "completion": "Print the script that completes commands at the tab key of bash, zsh or fish.",
    "new": "Write a starting point for a solver, a target or a suite of your own, with tests that pass.",
    "doctor": "Look at this installation: versions, kernels, threads, cache, store, and a small run.",
}


def import_option() -> click.Option:
    """The option ``--import``, which imports modules before the command looks up names."""
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
    """A group that imports the file of a command when the command is called, not for the list of commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"diffode.cli.{cmd_name.replace('-', '_')}_command").command
        if not any("--import" in option.opts for option in command.params):
            # Commands that pass imports on to their workers have their own option.
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
    """Run the command line.

    Exit codes: 0 done, 1 a check failed, 2 wrong usage or a file that can't be read or written, 3 a numerical failure,
    4 a sampler that can't be judged, 130 interrupted, 143 terminated.
    """
    end_in_order()
    with warnings_in_words():
        _run(sys.argv[1:] if arguments is None else arguments)


def _run(words: list[str]) -> None:
    try:
        code = command.main(args=words, prog_name="diffode", standalone_mode=False)
        # A flush here makes output that can't be printed an error of this command, not one of Python at its end.
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except DiffodeError as error:
        _end(str(error), error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt) as error:
        # click treats the end of a file as an interruption.
        if isinstance(error.__cause__, EOFError):
            _end(f"a file ends too early: {error.__cause__}", 2)
        stays = "; stored results stay, and the same command goes on from there" if "bench" in words[:1] else ""
        _end(f"interrupted{stays}", 130)
    except OSError as error:
        from diffode.output_files import remedy

        if error.filename is None:
            # An error without a file is most often about the output: its reader has gone, or the disk is full.
            _forget_output()
            if error.errno == errno.EPIPE:
                sys.exit(1)
        place = "what this command prints, or a file," if error.filename is None else f"file {str(error.filename)!r}"
        _end(f"{place} can't be written or read: {error.strerror or error}; {remedy(error)}", 2)
    except MemoryError as error:
        _end(_too_large(str(error)), 2)
    except RuntimeError as error:
        # PyTorch has no error class for memory that ran out.
        if "can't allocate memory" not in str(error):
            raise
        _end(_too_large(str(error).partition("allocate memory:")[2].partition(".")[0].strip()), 2)


@contextlib.contextmanager
def warnings_in_words() -> Iterator[None]:
    """Inside the block a warning is one line on stderr with its text, without a place in the source."""
    before = warnings.showwarning
    warnings.showwarning = _show_warning
    try:
        yield
    finally:
        warnings.showwarning = before


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    with contextlib.suppress(OSError):
        # A progress bar has put its own stream in the place of stderr, and writes above itself.
        print(f"warning: {message}", file=file or sys.stderr)


def _end(message: str, code: int) -> NoReturn:
    with contextlib.suppress(OSError):
        click.echo(f"diffode: {message}", err=True)
    sys.exit(code)


def _too_large(detail: str) -> str:
    return (
        f"there is not enough memory for this{f' ({detail})' if detail else ''}: ask for fewer points, workers or evaluations"
    )


def _forget_output() -> None:
    """Send output that could not be printed nowhere, so that Python does not try again at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def end_in_order() -> None:
    """Make a request to terminate unwind as an interruption does, so that temporary files are removed."""

    def terminate(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # A signal that is ignored (nohup) stays ignored, and only the main thread may set a handler.
        if (
            number is not None
            and threading.current_thread() is threading.main_thread()
            and signal.getsignal(number) is signal.SIG_DFL
        ):
            signal.signal(number, terminate)
