"""The command line. Nothing here imports PyTorch: a command does, when it computes, so that ``--help`` is instant."""

from diffode.cli.main import main

__all__ = ["main"]
