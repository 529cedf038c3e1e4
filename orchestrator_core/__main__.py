"""``python -m orchestrator_core`` is the ``orchestrator`` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Ctrl-C ends it as well while it is still being imported."""
    try:
        from orchestrator_core.cli import main as command
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    command(arguments, prog_name="orchestrator")


if __name__ == "__main__":
    main()
