"""Executions from their store itself, while no service runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from orchestrator_core.cli.findings import refuse
from orchestrator_core.cli.prepare import prepare
from orchestrator_core.documents import execution_json
from orchestrator_core.errors import InvalidRequest, OrchestratorError
from orchestrator_core.http.admin import parse_execution_query
from orchestrator_core.loops import run_async
from orchestrator_core.plugin_api import ExecutionStore, StoreContext
from orchestrator_core.stores import StoreSpec


def kept_executions(folder: Path, plugins_dir: Path | None, filters: Mapping[str, str]) -> dict[str, Any]:
    """Return what ``GET /executions`` would answer."""
    try:
        query = parse_execution_query(urlencode(filters))
    except InvalidRequest as error:
        raise click.ClickException(str(error)) from error

    async def ask(store: ExecutionStore) -> dict[str, Any]:
        page = await store.find(query)
        return {"executions": [execution_json(execution) for execution in page.executions], "cursor": page.cursor}

    return _ask(folder, plugins_dir, ask)


def kept_execution(folder: Path, plugins_dir: Path | None, execution_id: str) -> dict[str, Any]:
    """Return what ``GET /executions/{id}`` would answer."""

    async def ask(store: ExecutionStore) -> dict[str, Any]:
        execution = await store.get(execution_id)
        if execution is None:
            raise click.ClickException(f"no execution {execution_id} is kept")
        return execution_json(execution)

    return _ask(folder, plugins_dir, ask)


def _ask(folder: Path, plugins_dir: Path | None, ask: Any) -> dict[str, Any]:
    prepared = prepare(folder, plugins_dir)
    configuration, spec = prepared.configuration, prepared.store
    if spec is None:
        if prepared.errors:
            refuse(prepared.problems, folder, configuration.redactor)
        at = f"{folder.as_posix()}/config.yaml"
        raise click.ClickException(f"{at} has no tracking.store: executions are kept as long as the service runs")

    async def main(spec: StoreSpec) -> dict[str, Any]:
        async with spec.kind.open(spec.options, StoreContext(configuration.folder, existing=True)) as store:
            found: dict[str, Any] = await ask(store)
            return found

    try:
        return run_async(main(spec))
    except (OrchestratorError, ValueError) as error:
        message = configuration.redactor(str(error))
        raise click.ClickException(f"the tracking store cannot be read: {message}") from error
