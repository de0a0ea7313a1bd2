"""``python -m evostep``: the command line."""

from evostep.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
