"""The program's start: ready to be stopped before anything heavy is imported."""

import signal
import sys


def main() -> None:
    """Run the command line.

    As a container's first process we have no default action for SIGTERM, so it would be lost during
    the seconds that the imports take.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from whisper_byoc.cli import cli

    cli()


if __name__ == "__main__":
    main()
