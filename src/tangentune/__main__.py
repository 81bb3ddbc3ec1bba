"""`python -m tangentune` is the command line."""

from tangentune.cli.app import main

if __name__ == "__main__":
    raise SystemExit(main())
