"""The JSON Schemas of the configuration files, held against the converter that really parses them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import jsonschema_rs
import orjson
import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_core.config.load import load_configuration
from orchestrator_core.config.structure import Located, structure
from orchestrator_core.config.yaml import DataPath, Document, load_document
from orchestrator_core.config_schema import DIALECT, config_schemas
from orchestrator_core.direct import DIRECT
from orchestrator_core.models import ML
from orchestrator_core.plugin_api import Duration, ModelKind, Size, SourceKind, TransformerKind, option
from orchestrator_core.plugins import Plugin, Provided, Registry
from orchestrator_core.reference import options_reference
from orchestrator_core.snapshot import draft

ROOT = Path(__file__).parent.parent
PLUGIN = Plugin("test", "test")


@frozen
class Inner:
    """An inner class.

    What follows the first paragraph is for readers of the code.
    """

    count: int = option(3, help="How many.")


@frozen
class Needs:
    word: str = option(help="A word.")


@frozen
class Everything:
    """All that an option can be."""

    needed: str = option(help="Must be given.")
    text: str = option("x", help="A text.")
    flag: bool = option(True, help="On or off.")
    count: int = option(1, help="A count.")
    ratio: float = option(0.5, help="A ratio.")
    wait: Duration = option(Duration(0.25), help="How long.")
    limit: Size = option(Size(2**20), help="How large.")
    mode: Literal["a", "b", 1, True] = option("a", help="Which way.")
    maybe: str | None = option(None, help="A text, or none.")
    names: tuple[str, ...] = option((), help="Names.")
    either: tuple[str, ...] | Mapping[str, int] = option((), help="Names | counts.")
    inner: Inner = option(Inner(), help="An inner class.")
    needs: Needs | None = option(None, help="A word; see `<word>` and <word>.")
    many: Mapping[str, Inner] = option(factory=dict, help="Inner classes by name.")
    lists: list[list[float]] = option(factory=list, help="Lists of numbers.")
    scalar: str | bool | int | float | None = option(None, help="Anything simple.")
    short: str | Inner = option("x", help="A word or more.")
    data: Any = option(None, help="Anything.")


@frozen
class RemoteModel:
    base_url: str = option(help="Where it is.")
    timeout: Duration = option(Duration(2), help="How long it may take.")


@frozen
class FileModel:
    path: str = option(help="Where it lies.")


def never(*_: Any) -> Any:
    raise AssertionError("a schema opens nothing")


STORE = SourceKind(name="store", summary="Keeps things.", options=Everything, open=never, operation=Needs)
FREE = SourceKind(name="free", summary="Takes any operation.", options=Inner, open=never)
MODELS: dict[str, ModelKind[Any]] = {
    "http": ModelKind(name="http", summary="Far away.", options=RemoteModel, open=never),
    "artifact": ModelKind(name="artifact", summary="In a file.", options=FileModel, open=never, aliases=("local",)),
}
RENAME: TransformerKind[dict[str, str]] = TransformerKind(
    name="rename", summary="Renames.", options=dict[str, str], build=lambda _: never
)
REGISTRY = Registry(
    sources={kind.name: Provided(kind, PLUGIN) for kind in (DIRECT, ML, STORE, FREE)},
    models={
        **{name: Provided(kind, PLUGIN) for name, kind in MODELS.items()},
        "local": Provided(MODELS["artifact"], PLUGIN),
    },
    transformers={"rename": Provided(RENAME, PLUGIN)},
)


def validators(registry: Registry) -> dict[str, Any]:
    return {name: jsonschema_rs.Draft202012Validator(schema) for name, schema in config_schemas(registry).items()}


VALIDATORS = validators(REGISTRY)


def validator_of(file: str, among: Mapping[str, Any]) -> Any:
    return next(validator for name, validator in among.items() if fnmatch(file, name))


def test_there_is_a_schema_for_each_kind_of_file() -> None:
    schemas = config_schemas(REGISTRY)
    assert list(schemas) == ["config.yaml", "database.yaml", "integrations/*.yaml", "domains/*.yaml"]
    for name, schema in schemas.items():
        assert (schema["$schema"], schema["title"]) == (DIALECT, name)
        jsonschema_rs.meta.validate(schema)


def test_the_schema_of_a_class_says_all_that_the_class_says() -> None:
    settings = config_schemas(REGISTRY)["config.yaml"]
    assert settings["$defs"]["Inner"] == {
        "description": "An inner class.",
        "type": "object",
        "properties": {"count": {"type": "integer", "description": "How many.", "default": 3}},
        "additionalProperties": False,
    }
    assert settings["$defs"]["Needs"] == {
        "type": "object",
        "properties": {"word": {"type": "string", "description": "A word."}},
        "required": ["word"],
        "additionalProperties": False,
    }
    assert settings["properties"]["plugins_dir"] == {
        "type": ["string", "null"],
        "description": "Folder of single-file plugins.",
    }
    source = settings["$defs"]["store.source"]
    assert source["required"] == ["needed"]
    assert list(source["properties"])[-1] == "operations"
    assert source["properties"]["limit"]["default"] == 2**20
    assert source["properties"]["wait"]["default"] == 0.25
    assert source["properties"]["names"] == {
        "type": "array",
        "items": {"type": "string"},
        "description": "Names.",
        "default": [],
    }


def test_durations_sizes_and_words_can_be_placeholders_where_secrets_are_read() -> None:
    config, domain = VALIDATORS["config.yaml"], VALIDATORS["domains/*.yaml"]
    settings = {"server": {"max_body_size": "${env:SIZE:-1MiB}"}, "logging": {"level": "$ENV[LEVEL]"}}
    assert config.is_valid(settings)
    assert config.is_valid({"reload": {"drain_timeout": "${file:/run/timeout}"}})
    assert not config.is_valid({"reload": {"drain_timeout": "$soon"}})
    assert domain.is_valid({"endpoints": {"e": {"timeout": "250ms"}}})
    assert not domain.is_valid({"endpoints": {"e": {"timeout": "${env:TIMEOUT}"}}})


# --- the same verdict as the converter --------------------------------------------------------------------------------

words = st.sampled_from(["", "a", "b", "c", "1", "true", "250ms", "1.5s", "5 s", "-1s", "1MiB", "1.5KiB", "1mib", "2h"])
# A JSON Schema takes 2.0 for an integer and 1.0 for 1; YAML and our converter tell them apart.
numbers = st.integers(-2, 2) | st.floats(-2, 2).filter(lambda number: not number.is_integer())
scalars = st.none() | st.booleans() | numbers | words
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["a", "count", "word", "other"]), inner, max_size=2)
    ),
    max_leaves=4,
)
everything = st.fixed_dictionaries({}, optional=dict.fromkeys([*Everything.__annotations__, "unknown"], values))


@given(everything | values)
def test_a_schema_accepts_what_the_converter_accepts(data: Any) -> None:
    """For any one option, and with the needed one given: most random objects are wrong in several ways."""
    options = data if isinstance(data, dict) else {"data": data}
    for name, value in options.items():
        given_options = {"needed": "x", name: value}
        _, problems = structure(Everything, Located(Document("f", ""), (), given_options))
        accepted = VALIDATORS["config.yaml"].is_valid({"store": {"sources": {"s": given_options}}})
        assert accepted == (not problems), (given_options, problems)
    _, problems = structure(Everything, Located(Document("f", ""), (), data))
    if isinstance(data, dict):
        assert VALIDATORS["config.yaml"].is_valid({"store": {"sources": {"s": data}}}) == (not problems)


RIGHT: Sequence[tuple[str, Any]] = [
    ("config.yaml", None),
    ("config.yaml", {"server": None, "admin": {"port": 0}, "store": None, "ml": {}}),
    ("database.yaml", {"store": {"sources": {"s": {"needed": "x", "operations": {"o": {"word": "w"}}}}}}),
    ("database.yaml", {"store": {"sources": None, "operations": None}}),
    ("integrations/x.yaml", {"free": {"sources": {"default": None}, "operations": {"o": 3, "p": {"any": "thing"}}}}),
    ("integrations/x.yaml", {"direct": {"sources": {"default": {}}}}),
    ("integrations/x.yaml", {"ml": {"sources": {"m": {"source": {"base_url": "u"}}}}}),
    ("integrations/x.yaml", {"ml": {"sources": {"m": {"source": {"type": "http", "base_url": "u", "timeout": "2s"}}}}}),
    ("integrations/x.yaml", {"ml": {"sources": {"m": {"base_url": "u", "models": {"default": {"timeout": 1}}}}}}),
    ("integrations/x.yaml", {"ml": {"sources": {"m": {"source": {"type": "local", "path": "p", "batch": {}}}}}}),
    ("domains/d.yaml", None),
    ("domains/d.yaml", {"endpoints": None}),
    ("domains/d.yaml", {"endpoints": {"e": {"response_mapping": 1, "input_schema": {"type": "object"}}}}),
    (
        "domains/d.yaml",
        {
            "endpoints": {
                "e": {
                    "endpoint_type": "composite",
                    "data_sources": [
                        {"name": "a", "type": "direct", "condition": True, "default": None, "timeout": 0.5},
                        {"name": "b", "type": "direct", "transform": [{"rename": {"x": "y"}}]},
                    ],
                }
            }
        },
    ),
]
WRONG: Sequence[tuple[str, Any]] = [
    ("config.yaml", {"serve": {"port": 1}}),
    ("config.yaml", {"server": {"prot": 1}}),
    ("config.yaml", {"server": {"port": "8000"}}),
    ("config.yaml", {"server": []}),
    ("config.yaml", {"logging": {"level": "loud"}}),
    ("config.yaml", {"reload": {"drain_timeout": "5 s"}}),
    ("config.yaml", {"plugins_dir": 3}),
    ("database.yaml", {"server": {"port": 1}}),
    ("database.yaml", {"store": {"source": {}}}),
    ("database.yaml", {"store": []}),
    ("database.yaml", {"store": {"sources": {"s": None}}}),
    ("database.yaml", {"store": {"sources": {"s": {}}}}),
    ("database.yaml", {"store": {"sources": {"s": {"needed": "x", "nedded": "y"}}}}),
    ("database.yaml", {"store": {"sources": {"s": {"needed": "x", "operations": {"o": {}}}}}}),
    ("database.yaml", {"store": {"sources": {"s": {"needed": "x"}}, "operations": {"o": {"word": 1}}}}),
    ("integrations/x.yaml", {"unheard_of": {"sources": {"s": {}}}}),
    ("integrations/x.yaml", {"ml": {"sources": {"m": {}}}}),
    ("integrations/x.yaml", {"ml": {"sources": {"m": {"models": {}}}}}),
    ("integrations/x.yaml", {"ml": {"sources": {"m": {"source": {}}}}}),
    ("integrations/x.yaml", {"ml": {"sources": {"m": {"source": {"type": "artifact"}}}}}),
    ("integrations/x.yaml", {"ml": {"sources": {"m": {"source": {"type": "artifact", "path": "p", "base_url": "u"}}}}}),
    ("integrations/x.yaml", {"ml": {"sources": {"m": {"source": {"type": "artefact", "path": "p"}}}}}),
    ("integrations/x.yaml", {"ml": {"sources": {"m": {"source": {"base_url": "u", "batch": {"size": 3}}}}}}),
    ("integrations/x.yaml", {"ml": {"sources": {"m": {"models": {"default": {"timeout": 1}}}}}}),
    ("domains/d.yaml", []),
    ("domains/d.yaml", {"endpoint": {}}),
    ("domains/d.yaml", {"endpoints": {"e": {"methods": ["FETCH"], "response_mapping": 1}}}),
    ("domains/d.yaml", {"endpoints": {"e": {"endpoint_type": "magic", "response_mapping": 1}}}),
    ("domains/d.yaml", {"endpoints": {"e": {"input_schema": {"type": "objekt"}, "response_mapping": 1}}}),
    ("domains/d.yaml", {"endpoints": {"e": {"data_sources": {}}}}),
    ("domains/d.yaml", {"endpoints": {"e": {"data_sources": [{"name": "a"}]}}}),
    ("domains/d.yaml", {"endpoints": {"e": {"data_sources": [{"name": "a", "type": "unheard_of"}]}}}),
    ("domains/d.yaml", {"endpoints": {"e": {"data_sources": [{"name": "a", "type": "direct", "parms": {}}]}}}),
    ("domains/d.yaml", {"endpoints": {"e": {"response_mapping": 1, "transform": ["unheard_of"]}}}),
    ("domains/d.yaml", {"endpoints": {"e": {"response_mapping": 1, "transform": [{"rename": {"x": 1}}]}}}),
]


def errors_of(folder: Path, file: str, data: Any, registry: Registry) -> list[str]:
    """Return what the service says of a folder that has just this file."""
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(orjson.dumps(data))
    return [str(problem) for problem in draft(load_configuration(folder, {}), registry).errors]


@pytest.mark.parametrize(("file", "data"), RIGHT)
def test_a_right_file_is_accepted_by_the_schema_and_the_service(tmp_path: Path, file: str, data: Any) -> None:
    assert list(validator_of(file, VALIDATORS).iter_errors(data)) == []
    assert errors_of(tmp_path, file, data, REGISTRY) == []


@pytest.mark.parametrize(("file", "data"), WRONG)
def test_a_wrong_file_is_refused_by_the_schema_and_the_service(tmp_path: Path, file: str, data: Any) -> None:
    assert not validator_of(file, VALIDATORS).is_valid(data)
    assert errors_of(tmp_path, file, data, REGISTRY) != []


# --- the configurations that come with the repository -----------------------------------------------------------------

CONFIGURATIONS = ("config", "example/config")
FILES = [
    (folder, path.relative_to(ROOT / folder).as_posix())
    for folder in CONFIGURATIONS
    for path in sorted((ROOT / folder).rglob("*.yaml"))
]


@pytest.fixture(scope="module")
def shipped() -> Registry:
    """The plugins of this repository, whether or not they are installed."""
    database = pytest.importorskip("orchestrator_source_database.plugin").DATABASE
    api = pytest.importorskip("orchestrator_source_api.plugin").API
    feast = pytest.importorskip("orchestrator_source_feast.plugin").FEAST
    artifact = pytest.importorskip("orchestrator_model_artifact.plugin").ARTIFACT
    http = pytest.importorskip("orchestrator_model_http.plugin").HTTP
    docker = pytest.importorskip("orchestrator_model_docker.plugin").DOCKER
    ecr = pytest.importorskip("orchestrator_model_ecr.plugin").ECR
    sql = pytest.importorskip("orchestrator_tracking_sql.plugin").SQL
    telemetry = pytest.importorskip("orchestrator_telemetry.plugin").TELEMETRY
    models = {"artifact": artifact, "local_artifact": artifact, "http": http, "docker": docker, "ecr": ecr}
    return Registry(
        sources={kind.name: Provided(kind, PLUGIN) for kind in (DIRECT, ML, database, api, feast)},
        models={name: Provided(kind, PLUGIN) for name, kind in models.items()},
        telemetry=Provided(telemetry, PLUGIN),
        stores={"sql": Provided(sql, PLUGIN)},
    )


@pytest.mark.parametrize(("folder", "file"), FILES)
def test_every_file_of_the_starter_and_the_example_fits_its_schema(folder: str, file: str, shipped: Registry) -> None:
    data = load_document(ROOT / folder / file, file).data
    assert list(validator_of(file, validators(shipped)).iter_errors(data)) == []


def broken(data: Any, path: DataPath = ()) -> Iterator[tuple[DataPath, Any]]:
    """Yield the data with one thing in it changed, for each thing and change."""
    if path:
        for other in (3, ["x"], {"unheard_of": 1}, None):
            yield path, other
    items: Any = ()
    if isinstance(data, dict):
        yield (*path, "unheard_of"), 1
        items = data.items()
    elif isinstance(data, list):
        items = enumerate(data)
    for key, value in items:
        yield from broken(value, (*path, key))


def changed(data: Any, path: DataPath, value: Any) -> Any:
    done = copy.deepcopy(data)
    inside = done
    for part in path[:-1]:
        inside = inside[part]
    inside[path[-1]] = value
    return done


@pytest.mark.parametrize(("folder", "file"), FILES)
def test_a_schema_and_the_service_agree_on_every_change_of_a_file(
    tmp_path: Path, folder: str, file: str, shipped: Registry
) -> None:
    """What the schema refuses the service refuses; unknown keys and wrong types are refused by both."""
    validator = validator_of(file, validators(shipped))
    source = load_document(ROOT / folder / file, file).data
    for other, name in FILES:
        if other == folder and not (name.startswith("domains/") and name != file):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text((ROOT / folder / name).read_text())
    for path, value in broken(source):
        data = changed(source, path, value)
        (tmp_path / file).write_bytes(orjson.dumps(data))
        errors = draft(load_configuration(tmp_path), shipped).errors
        here = [problem for problem in errors if problem.file == file]
        if not validator.is_valid(data):
            assert errors, (path, value)
        else:
            assert [str(problem) for problem in here if problem.code in ("ORC201", "ORC202")] == [], (path, value)


# --- options as a table -----------------------------------------------------------------------------------------------


def test_the_options_of_a_class_as_a_table() -> None:
    assert options_reference(Everything).splitlines() == [
        "| option | type | default | meaning |",
        "|---|---|---|---|",
        "| `needed` | string | required | Must be given. |",
        "| `text` | string | `x` | A text. |",
        "| `flag` | true or false | `true` | On or off. |",
        "| `count` | integer | `1` | A count. |",
        "| `ratio` | number | `0.5` | A ratio. |",
        "| `wait` | duration | `250ms` | How long. |",
        "| `limit` | size | `1MiB` | How large. |",
        "| `mode` | `a`, `b`, `1` or `true` | `a` | Which way. |",
        "| `maybe` | string or null | none | A text, or none. |",
        "| `names` | list of strings | `[]` | Names. |",
        "| `either` | list of strings or mapping of names to integers | `[]` | Names &#124; counts. |",
        "| `inner` | mapping | `{}` | An inner class. |",
        "| `needs` | mapping or null | none | A word; see `<word>` and &lt;word>. |",
        "| `many` | mapping of names to mappings | `{}` | Inner classes by name. |",
        "| `lists` | list of list of numbers | `[]` | Lists of numbers. |",
        "| `scalar` | string, true or false, integer, number or null | none | Anything simple. |",
        "| `short` | string or mapping | `x` | A word or more. |",
        "| `data` | any value | none | Anything. |",
    ]
