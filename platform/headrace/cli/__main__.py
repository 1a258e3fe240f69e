"""``python -m headrace.cli`` is the same as the command ``headrace``."""

from headrace.cli.main import main

main()
