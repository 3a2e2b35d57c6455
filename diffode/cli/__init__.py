"""The command line. Only a command that computes imports PyTorch, so that ``--help`` is instant."""

from diffode.cli.main import main

__all__ = ["main"]
