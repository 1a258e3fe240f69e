"""The command ``headrace``: checks the Python version before anything else is imported."""

import sys

OLDEST = (3, 11)


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    if sys.version_info < OLDEST:
        have = ".".join(str(part) for part in sys.version_info[:3])
        want = ".".join(str(part) for part in OLDEST)
        sys.stderr.write(
            f"headrace: needs Python {want} or newer, this is {have}: run it with a newer one.\n"
        )
        sys.exit(1)
    # Only now: what follows is written for the newer Python.
    from headrace.cli.app import run  # noqa: PLC0415

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
