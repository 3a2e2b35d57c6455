"""``python -m diffode``: the command line."""

from diffode.cli import main

main()
