"""``diffode completion``: the script with which a shell completes commands, options and names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

#: Where each shell reads the script.
_PLACES = {
    "bash": 'eval "$(diffode completion bash)" in ~/.bashrc',
    "zsh": 'eval "$(diffode completion zsh)" in ~/.zshrc, after compinit',
    "fish": "diffode completion fish > ~/.config/fish/completions/diffode.fish",
}


@click.command("completion")
@click.argument("shell", type=click.Choice(list(_PLACES)))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the script with which SHELL completes diffode's commands, options, suites, targets and schedules at the tab key.

    \b
    bash:  eval "$(diffode completion bash)"      in ~/.bashrc
    zsh:   eval "$(diffode completion zsh)"       in ~/.zshrc, after compinit
    fish:  diffode completion fish > ~/.config/fish/completions/diffode.fish

    \b
    Example:  diffode completion bash
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"this version of click completes no {shell}: update it")
    made = kind(context.find_root().command, {}, "diffode", "_DIFFODE_COMPLETE")
    click.echo(f"# {_PLACES[shell]}\n{made.source_template % made.source_vars()}")
