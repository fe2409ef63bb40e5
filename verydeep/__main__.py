"""The command's first lines, `python -m verydeep` or `verydeep`: it may be stopped while it is imported."""

import sys


def main() -> None:
    """Run the command."""
    try:
        from .cli import main as command
    except KeyboardInterrupt:  # later it is said
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()
