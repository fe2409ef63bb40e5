"""`python -m verydeep` is `verydeep`."""

from .cli import main

if __name__ == "__main__":
    main()
