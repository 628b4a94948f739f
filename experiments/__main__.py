"""The way into the command `fl-sim`, also as `python -m experiments`: Ctrl-C ends it quietly even while its modules are imported."""

import sys


def main() -> int:
    """Run the command line and return its exit code."""
    try:
        from experiments.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
