"""``python -m orchestrator_core`` is the ``orchestrator`` command."""

from orchestrator_core.cli import main

if __name__ == "__main__":
    main(prog_name="orchestrator")
