"""``orchestrator run``."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import orjson
from attrs import evolve, frozen
from multidict import CIMultiDict

from orchestrator_core.cli.findings import refuse
from orchestrator_core.cli.options import config_option, plugins_dir_option
from orchestrator_core.cli.prepare import find_plan, log_to_stderr, prepare
from orchestrator_core.engine import Failure, execute, failure_of, finish, make_request, new_execution_id
from orchestrator_core.errors import ConfigError, did_you_mean
from orchestrator_core.expressions import MISSING, Missing
from orchestrator_core.http.answers import encode
from orchestrator_core.http_client import HttpClient
from orchestrator_core.loops import run_async
from orchestrator_core.models import Opening
from orchestrator_core.plan import Plan
from orchestrator_core.plugin_api import JSON, Execution
from orchestrator_core.run import Run
from orchestrator_core.snapshot import Draft, open_snapshot


@frozen
class Given:
    """A request as it was given on the command line."""

    path_params: dict[str, str]
    query: dict[str, list[str]]
    headers: CIMultiDict[str]
    body: JSON | Missing


@click.command()
@click.argument("endpoint", metavar="DOMAIN.ENDPOINT")
@config_option
@click.option("--path-param", "path_params", metavar="NAME=VALUE", multiple=True, help="A parameter of the path.")
@click.option("--query", metavar="NAME=VALUE", multiple=True, help="A query parameter; may be repeated.")
@click.option("--header", "headers", metavar="NAME=VALUE", multiple=True, help="A request header.")
@click.option("--body", metavar="JSON|@FILE|-", help="The body: JSON, a file that holds it, or - for standard input.")
@click.option("--trace", is_flag=True, help="Draw the timeline of the steps on stderr.")
@plugins_dir_option
def command(
    endpoint: str,
    folder: Path,
    path_params: tuple[str, ...],
    query: tuple[str, ...],
    headers: tuple[str, ...],
    body: str | None,
    trace: bool,
    plugins_dir: Path | None,
) -> None:
    """Execute one request in this process and print its answer.

    Opens only the sources that the endpoint uses. The answer is printed as JSON; a failed request prints the problem
    that a client would get and exits with 1.

    \b
    Example:
      orchestrator run hello.greet --path-param name=Ada --trace
      orchestrator run hello.greet --query excited=true --body '{"tags": []}'
    """
    log_to_stderr(folder)
    given = Given(
        path_params=dict(_pairs(path_params, "--path-param")),
        query=_grouped(_pairs(query, "--query")),
        headers=CIMultiDict(_pairs(headers, "--header")),
        body=MISSING if body is None else _body(body),
    )
    prepared = prepare(folder, plugins_dir)
    plan = find_plan(prepared, endpoint, folder)
    _check_path_params(plan, given.path_params)
    try:
        answer, execution = run_async(_run(plan, prepared, given))
    except ConfigError as error:
        refuse(error.problems, folder, prepared.configuration.redactor)
    click.echo(orjson.dumps(_document(answer, execution), option=orjson.OPT_INDENT_2).decode())
    if execution.degraded:
        click.echo(f"degraded: {', '.join(execution.degraded)}", err=True)
    if trace:
        from orchestrator_core.cli.timeline import console, draw

        draw(execution, console(sys.stderr))
    if isinstance(answer, Failure):
        raise click.exceptions.Exit(1)


def _document(answer: JSON | Failure, execution: Execution) -> Any:
    return answer.problem(execution.id) if isinstance(answer, Failure) else answer


async def _run(plan: Plan, prepared: Draft, given: Given) -> tuple[JSON | Failure, Execution]:
    used = {step.spec.key for step in plan.steps}
    specs = {key: spec for key, spec in prepared.catalog.specs.items() if key in used}
    key = (plan.domain, plan.name)
    alone = evolve(prepared, catalog=evolve(prepared.catalog, specs=specs), plans={key: plan}, problems=())
    redact = prepared.configuration.redactor
    async with HttpClient() as http:
        opening = Opening(used_only=True, progress=lambda line: click.echo(line, err=True))
        snapshot = await open_snapshot(alone, http, opening=opening)
        ready = snapshot.plans[key]
        run = Run(ready, new_execution_id())
        answer: JSON | Failure
        try:
            request = make_request(ready, dict(given.path_params), given.query, given.headers, given.body)
            answer = await execute(ready, request, run)
            encode(answer, plan)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # the boundary at which a failure of the request becomes its answer
            answer = failure_of(error, run, redact)
            finish(run, answer.status, error, redact)
        else:
            finish(run, 200, None, redact)
        finally:
            await snapshot.close()
    return answer, run.record()


def _pairs(texts: Iterable[str], option: str) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise click.UsageError(f"{option} takes NAME=VALUE, got '{text}'")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # bytes that are no text, which Python keeps as halves of characters
            raise click.UsageError(f"{option} takes UTF-8 text, got {os.fsencode(text)!r}") from error
        pairs.append((name, value))
    return pairs


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for name, value in pairs:
        grouped.setdefault(name, []).append(value)
    return grouped


def _body(text: str) -> JSON:
    if text == "-":
        where, raw = "standard input", sys.stdin.read()
    elif text.startswith("@"):
        where = text[1:]
        try:
            raw = Path(where).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise click.UsageError(f"cannot read the body from {where}: {reason}") from error
    else:
        where, raw = "--body", text
    try:
        body: JSON = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise click.UsageError(f"{where} is not JSON: {error}") from error
    return body


def _check_path_params(plan: Plan, given: dict[str, str]) -> None:
    """Refuse what no URL could have asked for."""
    for name in given:
        if name not in plan.path_params:
            hint = did_you_mean(name, plan.path_params)
            known = f": {hint}" if hint else ": its path has none"
            raise click.UsageError(f"{plan.id} has no path parameter '{name}'{known}")
    missing = [name for name in plan.path_params if name not in given]
    if missing and not plan.bare:
        needed = " ".join(f"--path-param {name}=…" for name in missing)
        raise click.UsageError(f"the path of {plan.id} needs {needed}")
