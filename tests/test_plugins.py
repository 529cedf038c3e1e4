"""Discovery: who provides what, and what becomes of plugins that cannot be loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import asynccontextmanager
from importlib import metadata
from itertools import count
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import structlog
from attrs import frozen

from orchestrator_core.plugin_api import Execution, SourceKind, hookimpl
from orchestrator_core.plugins import GROUP, discover
from orchestrator_core.reload import BUILTINS
from orchestrator_core.testing import check_problems
from orchestrator_core.testing.pytest_plugin import Served

Serve = Callable[..., Served]


@frozen
class Options:
    """Nothing to configure."""


class Opened:
    async def fetch(self, operation: str, params: Any) -> Any:
        return operation


@asynccontextmanager
async def opened(options: Any, context: Any) -> Any:
    yield Opened()


_NUMBERS = count()  # a module of a test before must not be found again


class Distribution(metadata.Distribution):
    """A distribution that is installed as far as entry points go."""

    def __init__(self, name: str, version: str) -> None:
        self._text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: What {name} does\n"

    def read_text(self, filename: str) -> str | None:
        return self._text if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        raise NotImplementedError


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Return what installs single-file plugins as distributions; nothing else is installed then."""
    found: list[metadata.EntryPoint] = []
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(metadata, "entry_points", lambda group: found if group == GROUP else [])

    def add(distribution: str, version: str, name: str, source: str) -> None:
        module = f"installed_{name}_{next(_NUMBERS)}"
        (tmp_path / f"{module}.py").write_text(dedent(source))
        point = metadata.EntryPoint(name, module, GROUP)
        found.append(point._for(Distribution(distribution, version)))  # type: ignore[attr-defined]

    return add


PROVIDES = """
    from contextlib import asynccontextmanager
    from attrs import frozen
    from orchestrator_core.plugin_api import {kind}, hookimpl

    @frozen
    class Options:
        pass

    class Opened:
        async def fetch(self, operation, params):
            return operation

    @asynccontextmanager
    async def opened(options, context):
        yield Opened()

    @hookimpl
    def {hook}():
        return [{made}]
"""
SOURCE = PROVIDES.format(
    kind="SourceKind", hook="orchestrator_source_kinds", made='SourceKind("{name}", "Summary.", Options, opened)'
)
MODEL = PROVIDES.format(
    kind="ModelKind",
    hook="orchestrator_model_kinds",
    made='ModelKind("{name}", "Summary.", Options, opened, aliases=("{name}_alias",))',
)
TRANSFORMER = PROVIDES.format(
    kind="TransformerKind",
    hook="orchestrator_transformers",
    made='TransformerKind("{name}", "Summary.", Options, lambda options: lambda value: value)',
)


def test_what_an_installed_plugin_provides_is_known_with_its_distribution(install: Callable[..., None]) -> None:
    install("orchestrator-api-source-feast", "0.1", "feast", SOURCE.replace("{name}", "feast"))
    install("models-of-mine", "2.0", "mine", MODEL.replace("{name}", "mine"))
    install("shapes", "1.5", "shapes", TRANSFORMER.replace("{name}", "shape"))
    registry = discover(None, BUILTINS)
    assert not registry.problems
    assert sorted(registry.sources) == ["direct", "feast", "ml"]
    assert sorted(registry.models) == ["mine", "mine_alias"]
    assert sorted(registry.transformers) == ["shape"]
    assert str(registry.sources["feast"].plugin) == "orchestrator-api-source-feast 0.1"
    assert registry.models["mine_alias"].plugin.summary == "What models-of-mine does"
    assert str(registry.sources["direct"].plugin).startswith("orchestrator-api-core ")


DOMAIN = "endpoints: {{e: {{data_sources: [{{name: s, type: {type}, operation: x}}]}}}}"


def test_a_plugin_that_fails_to_import_does_not_stop_a_service_that_does_not_need_it(
    install: Callable[..., None], serve: Serve
) -> None:
    install("orchestrator-api-source-feast", "0.1", "feast", "import no_such_library_of_mine")
    shop = serve({"domains/d.yaml": DOMAIN.format(type="direct")})
    assert shop.get("/orchestrator/d/e").status == 200
    (plugin,) = [plugin for plugin in shop.service.running.live.registry.plugins if plugin.error]
    assert plugin.origin == "orchestrator-api-source-feast"
    assert "Traceback (most recent call last):" in plugin.error
    assert plugin.error.endswith("ModuleNotFoundError: No module named 'no_such_library_of_mine'\n")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_library_of_mine", "ModuleNotFoundError: No module named 'no_such_library_of_mine'"),
        ("raise SystemError('the wrong machine')", "SystemError: the wrong machine"),
        ("def broken(:", "SyntaxError: invalid syntax"),
        (
            """
            from orchestrator_core.plugin_api import hookimpl

            @hookimpl
            def orchestrator_source_kinds():
                raise RuntimeError("no licence")
            """,
            "RuntimeError: no licence",
        ),
    ],
)
def test_a_plugin_that_fails_is_told_when_the_configuration_names_its_type(
    install: Callable[..., None], source: str, reason: str
) -> None:
    install("orchestrator-api-source-feast", "0.1", "feast", source)
    told = check_problems({"domains/d.yaml": DOMAIN.format(type="feast")})
    assert [(problem.code, problem.message) for problem in told] == [
        ("ORC403", f"`feast`: orchestrator-api-source-feast 0.1 is installed but failed to import: {reason}")
    ]


def test_a_hook_that_is_misspelt_is_told_by_name(install: Callable[..., None]) -> None:
    install("mine", "1", "mine", SOURCE.replace("{name}", "mine").replace("_source_kinds", "_sorce_kinds"))
    (plugin,) = [plugin for plugin in discover(None, BUILTINS).plugins if plugin.error]
    assert "unknown hook 'orchestrator_sorce_kinds'" in plugin.error
    told = check_problems({"domains/d.yaml": DOMAIN.format(type="mine")})
    assert [problem.code for problem in told] == ["ORC403"]
    assert "unknown hook 'orchestrator_sorce_kinds'" in told[0].message


def test_a_hook_with_a_misspelt_argument_is_told(install: Callable[..., None]) -> None:
    install(
        "mine",
        "1",
        "mine",
        """
        from orchestrator_core.plugin_api import hookimpl

        @hookimpl
        def orchestrator_execution_finished(exection):
            pass
        """,
    )
    (plugin,) = [plugin for plugin in discover(None, BUILTINS).plugins if plugin.error]
    assert "exection" in plugin.error


KINDS = """
    from contextlib import asynccontextmanager
    from attrs import frozen
    from orchestrator_core.plugin_api import ModelKind, SourceKind, TransformerKind, hookimpl

    class Bare:
        pass

    @frozen
    class Options:
        pass

    @asynccontextmanager
    async def opened(options, context):
        yield None

    @hookimpl
    def {hook}():
        return {answer}
"""


@pytest.mark.parametrize(
    ("hook", "answer", "reason"),
    [
        (
            "orchestrator_transformers",
            "['mine']",
            "orchestrator_transformers returned str in its list, expected TransformerKind",
        ),
        (
            "orchestrator_model_kinds",
            "ModelKind('mine', 'Mine.', Options, opened)",
            "orchestrator_model_kinds returned ModelKind, expected a list of ModelKind",
        ),
        (
            "orchestrator_source_kinds",
            "[SourceKind('mine', 'Mine.', Bare, opened)]",
            "the options of 'mine' are no attrs class: is Bare marked @frozen?",
        ),
        (
            "orchestrator_source_kinds",
            "[SourceKind('mine', 'Mine.', Options(), opened)]",
            "the options of 'mine' are Options(…), expected the class itself",
        ),
        (
            "orchestrator_source_kinds",
            "[SourceKind(None, 'Mine.', Options, opened)]",
            "orchestrator_source_kinds returned a SourceKind named None, expected a text",
        ),
        (
            "orchestrator_transformers",
            "[TransformerKind(['mine'], 'Mine.', Options, opened)]",
            "orchestrator_transformers returned a TransformerKind named ['mine'], expected a text",
        ),
        (
            "orchestrator_model_kinds",
            "[ModelKind('mine', 'Mine.', Options, opened, aliases=('', 'ours'))]",
            "orchestrator_model_kinds returned a ModelKind named '', expected a text",
        ),
        (
            "orchestrator_source_kinds",
            "None",
            "orchestrator_source_kinds returned NoneType, expected a list of SourceKind",
        ),
    ],
)
def test_a_hook_that_returns_no_kinds_is_told(
    install: Callable[..., None], hook: str, answer: str, reason: str
) -> None:
    install("acme", "1", "mine", KINDS.replace("{hook}", hook).replace("{answer}", answer))
    (told,) = check_problems({"domains/d.yaml": DOMAIN.format(type="mine")})
    assert (told.code, told.message) == (
        "ORC403",
        f"`mine`: acme 1 is installed but failed to import: TypeError: {reason}",
    )


def test_a_type_of_a_plugin_of_another_name_that_failed_says_which_have(install: Callable[..., None]) -> None:
    install("acme-weather", "1.2", "acme", "import no_such_library_of_mine")
    (told,) = check_problems({"domains/d.yaml": DOMAIN.format(type="weather")})
    assert (told.code, told.message) == ("ORC401", "no installed plugin provides the source type 'weather'")
    assert told.hint.endswith("; acme-weather 1.2 failed to import: orchestrator plugins tells why")


def test_one_plugin_that_fails_does_not_hide_the_others(install: Callable[..., None]) -> None:
    install("a", "1", "a", "raise ValueError('no')")
    install("b", "1", "b", SOURCE.replace("{name}", "b"))
    registry = discover(None, BUILTINS)
    assert "b" in registry.sources
    assert [plugin.name for plugin in registry.plugins if plugin.error] == ["a"]


@pytest.mark.parametrize(
    ("source", "what"),
    [(SOURCE, "source type 'twice'"), (MODEL, "model type 'twice'"), (TRANSFORMER, "transformer 'twice'")],
)
def test_two_plugins_that_provide_the_same_are_a_problem_that_names_both(
    install: Callable[..., None], source: str, what: str
) -> None:
    install("first-one", "1.0", "one", source.replace("{name}", "twice"))
    install("second-one", "2.0", "two", source.replace("{name}", "twice"))
    told = check_problems({"domains/d.yaml": DOMAIN.format(type="direct")})
    message = f"two plugins provide the {what}: first-one 1.0 and second-one 2.0"
    assert (told[0].code, told[0].message, told[0].hint) == ("ORC402", message, "uninstall one of them")


def test_a_plugin_cannot_take_the_place_of_a_built_in_one(install: Callable[..., None]) -> None:
    install("bold", "1.0", "bold", SOURCE.replace("{name}", "direct"))
    (problem,) = check_problems({"domains/d.yaml": DOMAIN.format(type="direct")})
    assert problem.message.startswith("two plugins provide the source type 'direct': orchestrator-api-core ")
    assert problem.message.endswith(" and bold 1.0")


@pytest.mark.parametrize(
    ("files", "message", "hint"),
    [
        (
            {"domains/d.yaml": DOMAIN.format(type="feast")},
            "no installed plugin provides the source type 'feast'",
            "install it: pip install orchestrator-api-source-feast",
        ),
        (
            {"domains/d.yaml": DOMAIN.format(type="drect")},
            "no installed plugin provides the source type 'drect'",
            "did you mean 'direct'?",
        ),
        (
            {"integrations/ml.yaml": "ml: {sources: {m: {source: {type: docker}}}}"},
            "no installed plugin provides the model type 'docker'",
            "install it: pip install orchestrator-api-model-docker",
        ),
    ],
)
def test_a_type_that_nobody_provides_names_what_to_install(
    install: Callable[..., None], files: dict[str, str], message: str, hint: str
) -> None:
    assert install
    (problem,) = check_problems(files)
    assert (problem.code, problem.message, problem.hint) == ("ORC401", message, hint)


# --- a folder of single-file plugins ------------------------------------------------------------------------------


def test_a_folder_of_plugins_is_named_in_config_yaml(serve: Serve) -> None:
    shop = serve(
        {
            "config.yaml": "plugins_dir: plugins",
            "plugins/mine.py": SOURCE.replace("{name}", "mine"),
            "plugins/_part.py": "raise ValueError('not a plugin')",
            "plugins/notes.txt": "not a plugin",
            "domains/d.yaml": "endpoints: {e: {response_mapping: 1}}",
        }
    )
    plugin = shop.service.running.live.registry.sources["mine"].plugin
    assert Path(plugin.origin).name == "mine.py"
    names = {plugin.name for plugin in shop.service.running.live.registry.plugins}
    assert not names & {"_part", "notes"}


@pytest.mark.parametrize("name", ["cache", "tracking"])
def test_a_source_type_that_has_the_name_of_a_setting_is_told_as_what_it_is(
    install: Callable[..., None], name: str
) -> None:
    install("acme", "1", "acme", SOURCE.replace("{name}", name))
    (told,) = check_problems({"domains/d.yaml": DOMAIN.format(type=name)})
    assert (told.code, told.message, told.hint) == (
        "ORC403",
        f"a source type cannot be called '{name}', as that is a key of config.yaml",
        "a defect of acme 1",
    )


def test_a_folder_of_plugins_that_is_not_there_is_a_problem() -> None:
    (problem,) = check_problems({"config.yaml": "plugins_dir: plguins"})
    assert (problem.code, Path(problem.message.split()[-1]).name) == ("ORC404", "plguins")


def test_a_broken_file_in_the_folder_is_told_when_it_is_named_by_its_type() -> None:
    files = {
        "config.yaml": "plugins_dir: plugins",
        "plugins/mine.py": "1 / 0",
        "domains/d.yaml": DOMAIN.format(type="mine"),
    }
    (problem,) = check_problems(files)
    assert problem.code == "ORC403"
    assert problem.message.endswith("mine.py is installed but failed to import: ZeroDivisionError: division by zero")


def test_an_options_class_in_a_single_file_plugin_can_use_postponed_annotations(serve: Serve) -> None:
    source = """
        from __future__ import annotations

        from contextlib import asynccontextmanager
        from attrs import frozen
        from orchestrator_core.plugin_api import Duration, SourceKind, hookimpl, option

        @frozen
        class Inner:
            wait: Duration | None = option(None, help="How long.")

        @frozen
        class Options:
            inner: Inner = option(factory=Inner, help="More.")
            names: tuple[str, ...] = option((), help="Names.")

        class Source:
            def __init__(self, options):
                self.options = options
            async def fetch(self, operation, params):
                return {"wait": float(self.options.inner.wait), "names": self.options.names}

        @asynccontextmanager
        async def opened(options, context):
            yield Source(options)

        @hookimpl
        def orchestrator_source_kinds():
            return [SourceKind("mine", "Mine.", Options, opened)]
    """
    files = {
        "integrations/mine.yaml": "mine: {sources: {default: {inner: {wait: 250ms}, names: [a, b]}}}",
        "domains/d.yaml": DOMAIN.format(type="mine"),
    }
    shop = serve(files, plugins={"mine": source})
    assert shop.get("/orchestrator/d/e").json == {"wait": 0.25, "names": ["a", "b"]}


# --- observers ----------------------------------------------------------------------------------------------------


class Observer:
    """Notes what it is told; ``error`` is raised each time."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.seen: list[Execution] = []
        self.error = error

    @hookimpl
    def orchestrator_execution_finished(self, execution: Execution) -> None:
        self.seen.append(execution)
        if self.error:
            raise self.error


def test_every_observer_is_told_though_one_raises(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    first, bad, last = Observer(), Observer(RuntimeError("cannot write")), Observer(SystemExit("never"))
    shop = serve(
        {"domains/d.yaml": "endpoints: {e: {response_mapping: '$request.x'}}"},
        plugins={"first": first, "bad": bad, "last": last},
    )
    answers = [shop.get("/orchestrator/d/e?x=1"), shop.get("/orchestrator/d/e")]
    assert [answer.status for answer in answers] == [200, 422]
    ids = [answer.headers["X-Execution-Id"] for answer in answers]
    for observer in (first, bad, last):
        assert [execution.id for execution in observer.seen] == ids
        assert [execution.status for execution in observer.seen] == ["ok", "failed"]
    assert sum(said.count("RuntimeError: cannot write") for said in capsys.readouterr()) == 2  # wherever the log goes


def test_an_observer_that_would_have_to_be_awaited_is_told_as_a_plugin_that_failed(
    install: Callable[..., None], serve: Serve
) -> None:
    install(
        "acme",
        "1",
        "audit",
        """
        from orchestrator_core.plugin_api import hookimpl

        @hookimpl
        async def orchestrator_execution_finished(execution):
            pass
        """,
    )
    reason = "TypeError: orchestrator_execution_finished is a coroutine function: hooks are synchronous"
    registry = discover(None, BUILTINS)
    (plugin,) = [plugin for plugin in registry.plugins if plugin.error]
    assert (plugin.name, registry.observers) == ("audit", ())
    assert plugin.error == reason
    with structlog.testing.capture_logs() as logs:  # no configuration names it, so that no problem would tell
        serve({"domains/d.yaml": "endpoints: {e: {response_mapping: 1}}"})
    assert [(each["plugin"], each["reason"]) for each in logs if each["event"] == "a plugin cannot be used"] == [
        ("acme 1", reason)
    ]


def test_plugins_of_one_service_are_not_those_of_another(serve: Serve) -> None:
    class Mine:
        @hookimpl
        def orchestrator_source_kinds(self) -> Iterable[SourceKind[Any]]:
            return [SourceKind("mine", "Mine.", Options, opened)]

    files = {"domains/d.yaml": "endpoints: {e: {response_mapping: 1}}"}
    with_it = serve(files, plugins={"mine": Mine()})
    without = serve(files)
    assert "mine" in with_it.service.running.live.registry.sources
    assert "mine" not in without.service.running.live.registry.sources


OPENS = """
    from contextlib import asynccontextmanager
    from attrs import frozen
    from orchestrator_core.plugin_api import SourceKind, hookimpl

    @frozen
    class Options:
        pass

    class Opened:
        async def fetch(self, operation, params):
            return None

        async def inspect(self):
            return {inspected}

    @asynccontextmanager
    async def opened(options, context):
        yield {opened}
        {then}

    @hookimpl
    def orchestrator_source_kinds():
        return [SourceKind("mine", "Mine.", Options, opened)]
"""


def opening(opened: str = "Opened()", inspected: str = "Inspection()", then: str = "") -> str:
    source = OPENS.replace("import SourceKind", "import Inspection, SourceKind")
    return source.replace("{opened}", opened).replace("{inspected}", inspected).replace("{then}", then)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (opening(opened="None"), "TypeError: what was opened has no fetch: it is a NoneType"),
        (opening(inspected="{}"), "TypeError: inspect returned dict, expected Inspection"),
        (
            opening(inspected="Inspection({'read': ('a',)})"),
            "TypeError: inspect returned tuple for 'read', expected OperationFacts",
        ),
        (
            opening(inspected="Inspection(findings=('no',))"),
            "TypeError: inspect returned str in its findings, expected Finding",
        ),
    ],
)
def test_an_open_source_that_keeps_no_contract_is_a_problem_that_names_its_plugin(
    install: Callable[..., None], source: str, reason: str
) -> None:
    install("acme", "1", "mine", source)
    (told,) = check_problems({"domains/d.yaml": DOMAIN.format(type="mine")})
    assert (told.code, told.message) == ("ORC601", f"mine.default cannot be opened: {reason}")
    assert told.hint.endswith("a defect of acme 1")


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ("date", "no option can be of the type date"),
        ("list[date]", "no option can be of the type date"),
        ("'Dat'", "the options cannot be read: name 'Dat' is not defined"),
    ],
)
def test_options_of_a_type_that_yaml_does_not_have_are_a_problem_that_names_it(
    install: Callable[..., None], annotation: str, reason: str
) -> None:
    """Else check, serve and each reload would be an internal error, and tell of nothing else."""
    source = opening().replace(
        "import asynccontextmanager", "import asynccontextmanager\n    from datetime import date"
    )
    install("acme", "1", "mine", source.replace("pass", f"day: {annotation}"))
    told = check_problems(
        {"domains/d.yaml": DOMAIN.format(type="mine"), "database.yaml": "mine: {sources: {default: {day: [x]}}}\n"}
    )
    assert [(problem.code, problem.message) for problem in told] == [("ORC601", reason)]


OPENS_A_MODEL = """
from contextlib import asynccontextmanager

from attrs import frozen

from orchestrator_core.plugin_api import Identity, ModelFacts, ModelKind, hookimpl


@frozen
class Options:
    pass


class Opened:
    async def predict(self, rows):
        return list(rows)

    {method}


@asynccontextmanager
async def opened(options, context):
    yield Opened()


@hookimpl
def orchestrator_model_kinds():
    return [ModelKind("mine", "Mine.", Options, opened)]
"""


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("def identity(self): return 'v1'", "identity returned str, expected Identity"),
        ("def facts(self): return {'inputs': ['x']}", "facts returned dict, expected ModelFacts"),
    ],
)
def test_a_model_that_tells_something_else_of_itself_is_a_problem_that_names_its_plugin(
    install: Callable[..., None], method: str, reason: str
) -> None:
    """Else the pages of models and of executions would fail, of all of them, once it had answered."""
    install("acme", "1", "mine", OPENS_A_MODEL.replace("{method}", method))
    (told,) = check_problems({"integrations/ml.yaml": "ml: {sources: {m: {source: {type: mine}}}}\n"})
    assert (told.code, told.message) == ("ORC601", f"ml.m cannot be opened: TypeError: {reason}")
    assert told.hint.endswith("a defect of acme 1")


def test_a_source_that_fails_when_it_is_closed_is_logged_by_name(
    install: Callable[..., None], serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    install("acme", "1", "mine", opening(then="raise RuntimeError('no way out')"))
    files = {"domains/d.yaml": DOMAIN.format(type="mine"), "integrations/mine.yaml": "mine: {sources: {default: {}}}"}
    assert check_problems(files) == []
    said = capsys.readouterr()
    assert "a source failed when it was closed" in said.out + said.err
    assert "no way out" in said.out + said.err


def test_a_source_that_hangs_when_it_is_closed_holds_nothing_up(
    install: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither check, nor the end of the service, nor a reload that found a problem elsewhere."""
    monkeypatch.setattr("orchestrator_core.snapshot.sources.CLOSE_SECONDS", 0.1)
    install("acme", "1", "mine", opening(then="import asyncio; await asyncio.sleep(3600)"))
    files = {"domains/d.yaml": DOMAIN.format(type="mine"), "integrations/mine.yaml": "mine: {sources: {default: {}}}"}
    assert check_problems(files) == []
    said = capsys.readouterr()
    assert "a source does not close: it is broken off" in said.out + said.err
