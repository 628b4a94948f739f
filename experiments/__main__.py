"""The way into the command `fl-sim`, also as `python -m experiments`: Ctrl-C ends it quietly even while its modules are imported."""

import signal
import sys

import fl_sim.signals  # noqa: F401  # pyright: ignore[reportUnusedImport] - first: see its hook
from experiments.command_line import parser


def main() -> int:
    """Run the command line and return its exit code."""
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:  # else it is ignored, as in the background of a script
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # an exception may be lost in the import of a library, and nothing is started yet
    parser().parse_known_args()  # help and wrong words end here, before the slow imports
    from experiments.cli import main as run

    signal.signal(signal.SIGINT, usual)
    try:
        return run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
