"""Lets `python -m plait.cli` do what `plait` does."""

from plait.cli import main

main()
