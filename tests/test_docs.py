"""README and docs: what they show runs and says what they say, and what they name exists.

What is done with a block follows from its language:

- ``console`` has commands after ``$`` and what they print. ``curl`` is asked of the service that the page is about,
  ``orchestrator`` is run. Times, ids and hashes may differ; a command with nothing below it has to succeed.
- ``bash`` has commands whose output is not shown; they are treated the same.
- ``diff`` changes a file of a copy; the ``console`` block after it shows what comes of that.
- ``yaml`` is read by the strict loader. Files of a configuration, and sections of them, are checked.
- ``json`` is parsed, ``python`` compiled, and what it imports from the core is looked up.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import attrs
import click
import pytest

from orchestrator_core.cli import main as orchestrator_command
from orchestrator_core.config.load import CORE_KEYS
from orchestrator_core.config.model import DomainFile
from orchestrator_core.config.yaml import parse_document
from orchestrator_core.testing import check_problems, free_port
from tests.example.commands import run_here
from tests.example.demo import wait_until
from tests.example.workspace import ENVIRONMENT, ROOT, make_workspace, servers

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *ROOT.glob("plugins/*/*.md"),
        *(path for path in (ROOT / "example").rglob("*.md") if "models" not in path.parts),
    )
)
LANGUAGES = {
    *("bash", "console", "diff", "json", "python", "yaml"),
    *("http", "mermaid", "sh", "text"),  # shown, and not run
    *("expression", "transform", "value"),  # run by the tests of their pages
}
SECTION_TYPES = ("api", "database", "direct", "feast", "ml")
# A block shows a part of a configuration: what it refers to may stand elsewhere, and what it needs need not be here.
NOT_OF_A_PART = {"ORC301", "ORC303", "ORC401", "ORC405"}


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page) if block.language in languages]


def blocks_of(page: str) -> Iterator[Block]:
    text = read(page)
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        language = match[1].split()[0] if match[1].strip() else ""
        yield Block(page, text.count("\n", 0, match.start()) + 1, language, match[2])


def prose(page: str) -> str:
    return re.sub(r"^```.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL)


# --- every block --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_each_block_says_its_language_so_that_it_is_tested(page: str) -> None:
    assert [str(block) for block in blocks_of(page) if block.language not in LANGUAGES] == []
    assert read(page).count("\n```") % 2 == 0


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_json_is_json(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_compiles_and_imports_what_the_core_has(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("orchestrator_core"):
            module = importlib.import_module(node.module or "")
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_is_read_and_checked(block: Block) -> None:
    document = parse_document(block.text, str(block))
    assert [str(problem) for problem in document.problems] == []
    name = file_of(document.data)
    if name:
        problems = check_problems({name: block.text}, offline=True)
        assert [str(problem) for problem in problems if problem.code not in NOT_OF_A_PART] == []


def file_of(data: Any) -> str | None:
    """Return the file of a configuration that the data could stand in, or None for a fragment of one."""
    keys = set(data) if isinstance(data, dict) else set()
    if not keys:
        return None
    if "endpoints" in keys and keys <= {field.name for field in attrs.fields(DomainFile)}:
        return "domains/page.yaml"
    if keys <= set(CORE_KEYS):
        return "config.yaml"
    is_section = all(isinstance(data[key], dict) and data[key].keys() & {"sources", "operations"} for key in keys)
    return "integrations/page.yaml" if is_section and keys & set(SECTION_TYPES) else None


# --- commands -----------------------------------------------------------------------------------------------------


class Session(NamedTuple):
    """A command and what the page shows of its output."""

    block: Block
    command: str
    shown: str

    def __str__(self) -> str:
        return f"{self.block}: {self.command}"


def sessions() -> list[Session]:
    found = []
    for block in blocks("console"):
        assert block.text.startswith("$ "), f"{block}: a console block starts with $ and a command"
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            found.append(Session(block, command, shown))
    for block in blocks("bash"):
        found += [Session(block, line, "") for line in block.text.splitlines() if line and not line.startswith("#")]
    return found


class Running(NamedTuple):
    """A service of the workspace: what is served and where, by the port that the page calls it by.

    ``environment`` is that of commands on its configuration: the example's servers are on ports of their own.
    """

    ports: Mapping[int, int]
    environment: Mapping[str, str]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.getbasetemp() / "workspace")


@pytest.fixture(scope="session")
def services(workspace: Path) -> Iterator[Mapping[str, Running]]:
    """The example, and the starter that `main.py` serves, each on ports of its own."""
    with ExitStack() as stack:
        environment = {**ENVIRONMENT, **stack.enter_context(servers(workspace))}
        example = [sys.executable, "-m", "orchestrator_core", "serve", "--config", "example/config"]
        starter = [sys.executable, "main.py"]
        yield {
            "example/config": stack.enter_context(serving(example, workspace, environment)),
            "config": stack.enter_context(serving(starter, workspace, ENVIRONMENT)),
        }


@contextmanager
def serving(command: list[str], folder: Path, environment: Mapping[str, str]) -> Iterator[Running]:
    ports = dict(zip((8000, 8001), (free_port(), free_port()), strict=True))
    with subprocess.Popen(
        [*command, "--port", str(ports[8000]), "--admin-port", str(ports[8001])],
        cwd=folder, env=environment, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stderr
            said = ""
            for line in process.stderr:
                said += line
                if line.strip().startswith("admin "):
                    break
            else:
                pytest.fail(f"{shlex.join(command)} did not start:\n{said}")
            wait_until(lambda: asked(ports[8000], "GET", "/health/ready", None, {})[0].status == 200)
            yield Running(ports, environment)
        finally:
            process.terminate()
            process.communicate(timeout=30)
            assert process.returncode == 0


@pytest.mark.parametrize("session", sessions(), ids=str)
def test_a_command_does_what_the_page_says(
    session: Session, services: Mapping[str, Running], workspace: Path, tmp_path: Path
) -> None:
    program, *arguments = shlex.split(session.command, comments=True)
    if program == "orchestrator":
        run_orchestrator(session, arguments, services, mistaken(session.block, workspace, tmp_path))
    elif program == "curl":
        ask_with_curl(session, arguments, services)
    elif program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert [word for word in arguments if "=" not in word and word not in targets] == []
    elif program == "pip":
        assert arguments[0] == "install"
        for requirement in arguments[1:]:
            assert_installable(requirement)
    elif program == "python":
        assert_python_runs(arguments)
    elif program == "bash":
        assert (ROOT / arguments[0]).is_file()
    else:
        pytest.fail(f"{session}: no rule for {program}")


def mistaken(block: Block, workspace: Path, copy: Path) -> Path:
    """Return the workspace; if a diff stands right before the block, a copy of it with the diff applied."""
    before: Block | None = None
    for each in blocks_of(block.page):
        if each == block:
            break
        before = each
    if before is None or before.language != "diff":
        return workspace
    head = re.match(r"--- (\S+)\n\+\+\+ \1\n", before.text)
    assert head, f"{before}: a diff begins with --- file and +++ file"
    lines = before.text[head.end() :].splitlines()
    old = "\n".join(line[1:] for line in lines if line[0] in " -")
    new = "\n".join(line[1:] for line in lines if line[0] in " +")
    shutil.copytree(workspace, copy, dirs_exist_ok=True)
    path = copy / head[1]
    text = path.read_text()
    assert text.count(old) == 1, f"{before}: {head[1]} has not exactly one of\n{old}"
    path.write_text(text.replace(old, new))
    return copy


# --- orchestrator -------------------------------------------------------------------------------------------------

SERVICE_COMMANDS = ("executions", "reload")
WRITING_COMMANDS = ("init", "serve")


def run_orchestrator(session: Session, arguments: list[str], services: Mapping[str, Running], folder: Path) -> None:
    if ">" in arguments:
        arguments = arguments[: arguments.index(">")]
    if not arguments or arguments[0] in WRITING_COMMANDS or "…" in "".join(arguments):
        assert_parses([] if arguments == ["…"] else arguments)
        return
    if arguments[0] in SERVICE_COMMANDS:
        assert_parses(arguments)
        arguments = [*arguments, "--admin", f"http://127.0.0.1:{service_of(arguments, services).ports[8001]}"]
    environment = service_of(arguments, services).environment if "--config" in arguments else ENVIRONMENT
    done = run_here(folder, arguments, environment)
    if session.shown:
        assert alike(done.stdout) == alike(session.shown), done.stderr
        assert done.exit_code == ("problem in" in session.shown or "problems in" in session.shown)
    else:
        assert done.exit_code == 0, done.output


def service_of(arguments: list[str], services: Mapping[str, Running]) -> Running:
    folder = arguments[arguments.index("--config") + 1] if "--config" in arguments else "config"
    return services[folder]


def assert_parses(arguments: list[str]) -> None:
    """Let click parse the arguments, without calling the command."""
    command: click.Command = orchestrator_command
    context = click.Context(command, info_name="orchestrator")
    while isinstance(command, click.Group) and arguments:
        found = command.get_command(context, arguments[0])
        assert found, f"orchestrator has no command {arguments[0]}"
        command, arguments = found, arguments[1:]
    if not isinstance(command, click.Group):
        command.make_context("orchestrator", list(arguments))


def alike(text: str) -> str:
    """Return a text without what differs from run to run: times, ids, hashes."""
    text = re.sub(r"\b[0-9a-f]{32}\b", "<id>", text)
    text = re.sub(r"sha256:[0-9a-f]{64}", "sha256:<hash>", text)
    text = re.sub(r"\(\d+\.\d\d s\)", "(<time>)", text)
    return re.sub(r"\d\.\d{9,}", lambda number: f"{float(number[0]):.6f}", text).strip()


# --- curl -----------------------------------------------------------------------------------------------------------


def ask_with_curl(session: Session, arguments: list[str], services: Mapping[str, Running]) -> None:
    method, headers, body, with_head, url = read_curl(arguments)
    parts = urlsplit(url)
    about = "config" if "/orchestrator/hello" in parts.path else "example/config"
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    answer, content = asked(services[about].ports[parts.port or 80], method, target, body, headers)
    if not session.shown:
        assert answer.status < 400, content
        return
    shown = session.shown.rstrip()
    if with_head:
        head, _, shown = shown.partition("\n\n")
        status, *lines = head.splitlines()
        assert status == f"HTTP/1.1 {answer.status} {answer.reason}"
        for line in lines:
            name, _, value = line.partition(": ")
            assert timeless(answer.getheader(name) or "") == timeless(value), name
    if shown:
        assert_same(json.loads(content), json.loads(shown))


def read_curl(arguments: list[str]) -> tuple[str, dict[str, str], bytes | None, bool, str]:
    method, body, with_head, url = "", None, False, ""
    headers: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        if word in ("-i", "--include"):
            with_head = True
        elif word in ("-X", "--request"):
            method = next(words)
        elif word in ("-H", "--header"):
            name, _, value = next(words).partition(": ")
            headers[name] = value
        elif word in ("-d", "--data", "--json"):
            body = next(words).encode()
            if word == "--json":
                headers["Content-Type"] = "application/json"
        elif word not in ("-s", "--silent"):
            assert word.startswith("http://localhost:80"), f"no rule for {word}"
            url = word
    return method or ("POST" if body else "GET"), headers, body, with_head, url


def asked(
    port: int, method: str, target: str, body: bytes | None, headers: Mapping[str, str]
) -> tuple[HTTPResponse, str]:
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request(method, target, body, dict(headers))
        answer = connection.getresponse()
        return answer, answer.read().decode()


def timeless(value: str) -> str:
    return re.sub(r"dur=\d+\.\d+", "dur=…", re.sub(r"\b[0-9a-f]{32}\b", "<id>", value))


def assert_same(found: Any, shown: Any, place: str = "the answer") -> None:
    if isinstance(shown, dict):
        assert isinstance(found, dict), place
        assert list(found) == list(shown), place
        for key in shown:
            assert_same(found[key], shown[key], f"{place}, {key}")
    elif isinstance(shown, float) and isinstance(found, float):
        assert math.isclose(found, shown, rel_tol=1e-5), place
    elif isinstance(shown, str) and isinstance(found, str):
        assert timeless(found) == timeless(shown), place
    else:
        assert found == shown, place


# --- pip and python -------------------------------------------------------------------------------------------------


def assert_installable(requirement: str) -> None:
    """Hold what is installed against our own projects: their names, folders and extras."""
    projects: dict[str, Any] = {}
    for path in (ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")):
        project = tomllib.loads(path.read_text())["project"]
        folder = path.parent.relative_to(ROOT).as_posix()
        projects[project["name"]] = projects["." if folder == "." else f"./{folder}"] = project
    match = re.fullmatch(r"([\w./-]+)(?:\[([\w,-]+)\])?", requirement)
    assert match, requirement
    assert match[1] in projects, f"we have no project {match[1]}"
    extras = set(match[2].split(",")) if match[2] else set()
    assert extras <= set(projects[match[1]].get("optional-dependencies", {})), requirement


def assert_python_runs(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]), arguments[1]
    else:
        assert (ROOT / arguments[0]).is_file(), arguments[0]


# --- links and paths ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, fragment = target.partition("#")
        at = (ROOT / page).parent / path if path else ROOT / page
        if not at.exists() or (fragment and fragment not in anchors(at)):
            broken.append(target)
    assert broken == []


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page: str, workspace: Path) -> None:
    """A path is what stands in backticks and begins with something that is in the repository's top folder."""
    top = {path.name for path in ROOT.iterdir()} - {".tox", ".venv"}
    named = re.findall(r"`((?:\.?[\w-]+/)[\w./-]*|[\w-]+\.(?:py|toml|ini|md|txt))`", prose(page))
    paths = [path for path in named if path.split("/")[0] in top]
    assert [path for path in paths if not (ROOT / path).exists() and not (workspace / path).exists()] == []


def test_the_index_has_every_page() -> None:
    linked = set()
    for index in ("docs", "docs/reference"):  # the second is linked from the first, and written with its pages
        targets = re.findall(r"\]\(([^)#\s]+)\)", read(f"{index}/README.md"))
        linked |= {os.path.normpath(f"{index}/{target}") for target in targets}
    assert [page for page in PAGES if page.startswith("docs/") and page not in {*linked, "docs/README.md"}] == []
