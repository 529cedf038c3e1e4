"""Questions to the admin listener of the running service."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http.client import BadStatusLine, HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import click

from orchestrator_core.cli.findings import shown
from orchestrator_core.config.load import load_configuration

_ANY_ADDRESS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


def admin_url(given: str | None, folder: Path) -> str:
    """Return the URL that was given, else the one that the configuration's admin listener has."""
    if given:
        url = given if "://" in given else f"http://{given}"
        if not _is_address(url):
            raise click.UsageError(f"--admin takes a URL such as http://127.0.0.1:8001, got '{given}'")
        return url.rstrip("/")
    admin = load_configuration(folder).app.admin
    if not admin.enabled:
        raise click.ClickException(
            f"the admin listener is off: {folder.as_posix()}/config.yaml sets admin.enabled to false\n"
            "  = turn it on, or send the service SIGHUP to have it reload"
        )
    if admin.port == 0:
        raise click.ClickException("admin.port is 0, any free one: say which it is with --admin")
    host = _ANY_ADDRESS.get(admin.host, admin.host)
    return f"http://[{host}]:{admin.port}" if ":" in host else f"http://{host}:{admin.port}"


def unread(folder: Path) -> str:
    """Return what is to be added where nothing is found, when config.yaml cannot be read, which may say another place.

    It begins with a line end, or is empty.
    """
    configuration = load_configuration(folder)
    problems = [
        problem
        for problem in configuration.errors
        if problem.file in ("", "config.yaml")  # "" is the folder, which is not there
        and (configuration.app_located is None or problem.path.startswith("admin"))
    ]
    if not problems:
        return ""
    found = "\n".join(map(str, shown(problems, folder, configuration.redactor)))
    return f"\n  = or it is where config.yaml says, which cannot be read:\n{found}"


def _is_address(url: str) -> bool:
    parts = urlsplit(url)
    try:
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port that is no number
        return False


def ask(
    url: str,
    method: str,
    path: str,
    query: Mapping[str, str] | None = None,
    *,
    timeout_seconds: float = 30,
    otherwise: str = "",
) -> tuple[int, Any]:
    """Return the status and the JSON document of the answer; end the command when there is none.

    ``otherwise`` is what can be done where no service runs.
    """
    parts = urlsplit(url)
    connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = connect(parts.hostname or "", parts.port, timeout=timeout_seconds)
    target = f"{parts.path}{path}{f'?{urlencode(query)}' if query else ''}"
    try:
        connection.request(method, target, headers={"Accept": "application/json"})
        answer = connection.getresponse()
        raw = answer.read()
    except ConnectionRefusedError as error:
        hint = f"start it with `orchestrator serve`, or say where it is with --admin{otherwise}"
        raise click.ClickException(f"nothing listens on {url}: the service does not run there\n  = {hint}") from error
    except TimeoutError as error:
        raise click.ClickException(f"{url} did not answer within {timeout_seconds:g} s") from error
    except (OSError, HTTPException) as error:
        reason = "what it answers is not HTTP" if type(error) is BadStatusLine else error
        raise click.ClickException(f"{url} cannot be asked: {reason}") from error
    finally:
        connection.close()
    try:
        document = json.loads(raw)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise not_the_service(f"{url}{path} answered {answer.status} without a JSON document")
    return answer.status, document


def not_the_service(message: str) -> click.ClickException:
    """Return the error for an answer that the service does not give."""
    return click.ClickException(f"{message}\n  = is this the admin listener of the service?")


def refused(url: str, status: int, document: Mapping[str, Any]) -> click.ClickException:
    """Return the error for an answer that is not what was asked for."""
    detail = document.get("detail") or document.get("title") or "no reason given"
    return click.ClickException(f"{url} answered {status}: {detail}")
