"""What the commands share that work on a configuration in this process."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click
import structlog

from orchestrator_core.cli.findings import counted, refuse
from orchestrator_core.cli.masking import Mask, mask_of
from orchestrator_core.config.load import load_configuration
from orchestrator_core.errors import did_you_mean
from orchestrator_core.logs import MaskEvents
from orchestrator_core.plan import Plan
from orchestrator_core.reload import make_registry
from orchestrator_core.snapshot import Draft, draft


def prepare(folder: Path, plugins_dir: Path | None) -> Draft:
    """Return the compiled configuration, with whatever is wrong with it."""
    return draft(load_configuration(folder), make_registry(folder, plugins_dir))


def find_plan(prepared: Draft, name: str, folder: Path) -> Plan:
    """Return the plan of ``DOMAIN.ENDPOINT``. When it has none, say why and end the command.

    What is wrong elsewhere in the configuration does not matter to this endpoint, and is only mentioned.
    """
    plan = next((plan for plan in prepared.plans.values() if plan.id == name), None)
    if plan is None:
        known = [f"{endpoint.domain}.{endpoint.name}" for endpoint in prepared.configuration.endpoints]
        if prepared.errors and (name in known or not known or prepared.configuration.incomplete):
            refuse(prepared.problems, folder, prepared.configuration.redactor)
        hint = did_you_mean(name, known)
        raise click.ClickException(f"there is no endpoint '{name}' in {folder}{f': {hint}' if hint else ''}")
    if prepared.errors:
        elsewhere = counted(len(prepared.errors), "problem")
        click.echo(f"note: the configuration has {elsewhere} elsewhere, see: orchestrator check", err=True)
    return plan


def log_to_stderr(folder: Path) -> None:
    """Send warnings and errors of the engine, and of libraries, to stderr: stdout is for the command's answer.

    The secrets of the folder's configuration are masked in them.
    """
    mask = mask_of(folder)
    if isinstance(logging.lastResort, logging.Handler):
        logging.lastResort.setFormatter(_Masked(mask))
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            MaskEvents(mask),
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger("warning"),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )


class _Masked(logging.Formatter):
    """What libraries log where nothing else is said of it, without secrets."""

    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self._mask = mask

    def format(self, record: logging.LogRecord) -> str:
        return self._mask(super().format(record))
