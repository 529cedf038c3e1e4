"""What a person gets who installs the core, or the core and one plugin: how much, how fast, and nothing else."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PLUGINS = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))

# Libraries that belong to plugins; the core must never bring or import one.
FOREIGN = {
    "alembic", "asyncmy", "asyncpg", "aiosqlite", "boto3", "docker", "feast", "jmespath", "matplotlib", "mlflow",
    "mlflow-skinny", "numpy", "onnx", "onnxruntime", "opentelemetry-sdk", "pandas", "prometheus-client", "psycopg",
    "pyarrow", "scikit-learn", "scipy", "skl2onnx", "skops", "sqlalchemy",
}  # fmt: skip
# What of these each plugin is for. Whatever it brings beyond the core must also be asked for by its own metadata.
BRINGS = {
    "source-database": {"sqlalchemy"},
    "model-artifact": {"numpy"},
    "model-http": set(),
    "source-feast": {"feast", "numpy", "pandas", "prometheus-client", "pyarrow", "sqlalchemy"},
    "model-docker": {"docker"},
    "model-ecr": {"boto3", "docker", "jmespath"},
    "source-api": set(),
    "transform-standard": {"jmespath"},
    "tracking-sql": {"alembic", "sqlalchemy"},
    "telemetry": {"prometheus-client"},
}


def test_importing_the_command_line_takes_under_300_ms() -> None:
    measure("import orchestrator_core.cli")  # writes the byte code that an installed package has
    runs = [measure("import orchestrator_core.cli").cpu_seconds for _ in range(7)]
    assert min(runs) < 0.3, runs  # the quickest: what else runs on the machine only ever adds


def test_importing_the_command_line_takes_under_60_mb() -> None:
    assert measure("import orchestrator_core.cli").megabytes < 60


def test_importing_the_command_line_imports_no_plugin_and_none_of_their_libraries() -> None:
    modules = measure("import orchestrator_core.cli").modules
    plugins = {plugin_package(plugin) for plugin in PLUGINS}
    assert not {module for module in modules if module in plugins or distribution_name(module) in FOREIGN | {"sklearn"}}


def test_every_plugin_is_known_to_the_tools() -> None:
    """A folder in plugins/ that no environment tests, no contract guards and no wheel test installs is a mistake."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    tox = (ROOT / "tox.ini").read_text()
    packages = {"orchestrator_core", *map(plugin_package, PLUGINS)}
    assert set(pyproject["tool"]["importlinter"]["root_packages"]) == packages
    assert set(pyproject["tool"]["coverage"]["run"]["source_pkgs"]) == packages
    assert sorted(BRINGS) == PLUGINS
    assert [plugin for plugin in PLUGINS if f"pytest plugins/{plugin} {{posargs}}" not in tox] == []


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_plugin_has_what_a_distribution_of_its_own_has(plugin: str) -> None:
    folder = ROOT / "plugins" / plugin
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == f"orchestrator-api-{plugin}"
    assert project["requires-python"] == ">=3.11"
    assert "orchestrator-api-core>=0.1,<0.2" in project["dependencies"]
    assert "orchestrator.plugins" in project["entry-points"]
    for part in ("README.md", "CHANGELOG.md", f"src/{plugin_package(plugin)}/py.typed", "tests"):
        assert (folder / part).exists(), part


def test_constraints_hold_names_and_versions_only() -> None:
    """An address or a path in there would tie a checkout to one index or one machine."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.+!]+", line)] == []


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The core's and every plugin's wheel, by distribution name."""
    folder = tmp_path_factory.mktemp("wheels")
    projects = [".", *(f"plugins/{plugin}" for plugin in PLUGINS)]
    pip_wheel = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation")
    run(*pip_wheel, "-w", folder, *projects, cwd=ROOT)
    return {distribution_name(path.name.partition("-")[0]): path for path in folder.glob("*.whl")}


@pytest.fixture
def installed(tmp_path: Path, wheels: dict[str, Path]) -> "Environment":
    return Environment(tmp_path / "environment", wheels)


@pytest.mark.wheels
def test_the_core_wheel_holds_all_of_the_package_and_nothing_else(wheels: dict[str, Path]) -> None:
    names = zipfile.ZipFile(wheels["orchestrator-api-core"]).namelist()
    tracked = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "orchestrator_core", cwd=ROOT)
    assert {name for name in names if ".dist-info/" not in name} == set(tracked.split())


@pytest.mark.wheels
def test_the_core_alone_installs_and_serves_the_command_line(installed: "Environment") -> None:
    installed.install("orchestrator-api-core")
    assert installed.distributions() == installed.required_by("orchestrator-api-core")
    assert not installed.distributions() & FOREIGN
    assert "serve" in installed.orchestrator("--help")
    assert not {plugin for plugin in PLUGINS if f"orchestrator-api-{plugin}" in installed.orchestrator("plugins")}


@pytest.mark.wheels
@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_plugin_alone_installs_is_found_and_brings_only_what_it_needs(plugin: str, installed: "Environment") -> None:
    distribution = f"orchestrator-api-{plugin}"
    installed.install(distribution)
    assert installed.distributions() == installed.required_by(distribution)
    assert installed.distributions() & FOREIGN <= BRINGS[plugin]
    listed = installed.orchestrator("plugins")
    needed = installed.required_by(distribution)
    expected = {other for other in PLUGINS if f"orchestrator-api-{other}" in needed}
    assert {other for other in PLUGINS if f"orchestrator-api-{other}" in listed} == expected >= {plugin}
    assert "failed" not in listed


class Environment:
    """An empty virtual environment without pip, and what is asked of it."""

    def __init__(self, folder: Path, wheels: dict[str, Path]) -> None:
        self.python = folder / "bin" / "python"
        self.wheels = wheels
        self.constraints = folder / "constraints.txt"
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        # Ours by their files: nothing of these names may come from an index.
        ours = [f"{name} @ {wheel.as_uri()}\n" for name, wheel in wheels.items()]
        self.constraints.write_text((ROOT / "constraints.txt").read_text() + "".join(ours))

    def pip(self, *arguments: str | Path) -> str:
        return run(sys.executable, "-m", "pip", "--python", self.python, *arguments)

    def install(self, distribution: str) -> None:
        self.pip("install", "-q", "-c", self.constraints, self.wheels[distribution])
        self.pip("check")

    def orchestrator(self, *arguments: str) -> str:
        return run(self.python.with_name("orchestrator"), *arguments, cwd=self.constraints.parent)

    def distributions(self) -> set[str]:
        return {distribution_name(found["name"]) for found in json.loads(self.pip("list", "--format=json"))}

    def required_by(self, distribution: str) -> set[str]:
        """The distribution and all that the metadata of what is installed asks for, from it downward."""
        report = json.loads(self.pip("inspect"))
        environment = report["environment"]
        asks = {
            distribution_name(found["metadata"]["name"]): found["metadata"].get("requires_dist", [])
            for found in report["installed"]
        }
        return set(closure(distribution, asks, environment))


def closure(distribution: str, asks: dict[str, list[str]], environment: dict[str, str]) -> set[str]:
    needed: set[tuple[str, str]] = set()
    waiting = [(distribution, "")]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in needed:
            continue
        needed.add((name, extra))
        for requirement in map(Requirement, asks[name]):
            if requirement.marker is None or requirement.marker.evaluate({**environment, "extra": extra}):
                waiting += [(distribution_name(requirement.name), part) for part in ("", *requirement.extras)]
    return {name for name, _ in needed}


@dataclass(frozen=True)
class Measured:
    cpu_seconds: float
    megabytes: float
    modules: list[str]


def measure(statement: str) -> Measured:
    """What a fresh interpreter needs to run the statement, and the top-level modules it then holds."""
    script = f"""
import time
started = time.process_time()
{statement}
seconds = time.process_time() - started
import json, re, sys
# Not getrusage: its peak starts at that of the process that started this one.
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024 / 1e6
print(json.dumps([seconds, peak, [name for name in sys.modules if "." not in name]]))
"""
    return Measured(*json.loads(run(sys.executable, "-c", script)))


def run(*command: str | Path, cwd: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def plugin_package(plugin: str) -> str:
    return f"orchestrator_{plugin.replace('-', '_')}"


def distribution_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
