"""Where an image comes from: the engine, or a registry with a real login."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from docker_kit import HTTP, Engine, Registry, failure, opened, registry
from orchestrator_model_docker.images import exposed_ports, split_reference
from orchestrator_model_docker.plugin import DOCKER

from orchestrator_core.plugin_api import SourceError, SourceUnavailable
from orchestrator_core.testing import check_problems, free_port


@pytest.fixture(scope="module")
def private(machine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("registry"), "ada", "s3cret-word") as running:
        yield running


@pytest.fixture
def pushed(private: Registry, machine: Engine, score_image: str) -> Iterator[tuple[str, str]]:
    """An image that only the registry has: its name with the tag, and its digest."""
    name = f"{private.host}/models/{machine.prefix}-score"
    machine.api.tag(score_image, name, "1")
    login = {"username": private.username, "password": private.password}
    for line in machine.api.push(name, "1", auth_config=login, stream=True, decode=True):
        assert "error" not in line, line
    digest = next(
        known.partition("@")[2] for known in machine.api.inspect_image(f"{name}:1")["RepoDigests"] if name in known
    )
    machine.api.remove_image(f"{name}:1")
    yield f"{name}:1", digest
    for reference in (f"{name}:1", f"{name}@{digest}"):
        try:
            machine.api.remove_image(reference, force=True)
        except Exception:
            continue


@pytest.fixture
def login(private: Registry) -> dict[str, Any]:
    return {"credentials": {"username": private.username, "password": private.password}}


def test_an_image_is_pulled_by_tag_and_by_digest_with_credentials(
    engine: Engine, pushed: tuple[str, str], login: Any, tmp_path: Path, run: Callable[..., Any]
) -> None:
    reference, digest = pushed
    name = reference.rpartition(":")[0]

    async def main() -> None:
        async with opened(reference, tmp_path, **login) as model:
            assert model.identity() == (type(model.identity()))(name, "1", digest)
        engine.api.remove_image(reference)
        async with opened(f"{name}@{digest}", tmp_path, **login) as model:
            assert model.identity() == (type(model.identity()))(name, "", digest)
            assert engine.only().attrs["Config"]["Image"] == f"{name}@{digest}"
            await model.predict([{"tenure": 1}])

    run(main())


def test_credentials_are_taken_from_docker_login_when_none_are_given(
    engine: Engine,
    private: Registry,
    pushed: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., Any],
) -> None:
    word = b64encode(f"{private.username}:{private.password}".encode()).decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {private.host: {"auth": word}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))

    async def main() -> None:
        async with opened(pushed[0], tmp_path) as model:
            await model.predict([{"tenure": 1}])

    run(main())


def test_a_refused_login_an_absent_tag_and_an_absent_registry_are_told_apart(
    engine: Engine, private: Registry, pushed: tuple[str, str], login: Any, tmp_path: Path
) -> None:
    reference, _ = pushed
    wrong = {"credentials": {"username": private.username, "password": "wrong"}}
    error = failure(reference, tmp_path, **wrong)
    assert isinstance(error, SourceError)
    assert str(error).startswith(f"the registry refuses to give the image {reference}: ")
    assert str(error).endswith("; check its name, and give credentials or log in with docker login")

    absent = reference.replace(":1", ":2")
    error = failure(absent, tmp_path, **login)
    assert isinstance(error, SourceError)
    assert str(error).startswith(f"the registry has no image {absent}: manifest ")

    nowhere = f"127.0.0.1:{free_port()}/models/score:1"
    error = failure(nowhere, tmp_path)
    assert isinstance(error, SourceUnavailable)
    assert error.started is False
    assert str(error).startswith(f"the image {nowhere} cannot be pulled: ")
    assert "connection refused" in str(error)


@pytest.mark.parametrize("never", ["never", False])
def test_never_does_not_pull(engine: Engine, pushed: tuple[str, str], login: Any, never: Any, tmp_path: Path) -> None:
    error = failure(pushed[0], tmp_path, pull=never, **login)
    assert isinstance(error, SourceError)
    assert str(error) == (
        f"the engine has no image {pushed[0]}, and pull is never: build or load it, or write pull: missing"
    )


@pytest.mark.parametrize("always", ["always", True])
def test_always_takes_what_the_tag_stands_for_now_and_missing_what_is_here(
    engine: Engine,
    private: Registry,
    machine: Engine,
    pushed: tuple[str, str],
    login: Any,
    always: Any,
    tmp_path: Path,
    run: Callable[..., Any],
) -> None:
    reference, _ = pushed
    name = reference.rpartition(":")[0]

    async def who(**options: Any) -> Any:
        async with opened(reference, tmp_path, **options, **login) as model:
            return (await model.predict([{"tenure": 1}]))[0]["who"], await model.changed()

    async def main() -> None:
        assert await who() == ("", False)
        here = machine.api.inspect_image(reference)["Id"]
        newer = machine.image("newer", changes=["ENV WHO=newer"])
        machine.api.tag(newer, name, "1")
        push = {"username": private.username, "password": private.password}
        assert all(
            "error" not in line for line in machine.api.push(name, "1", auth_config=push, stream=True, decode=True)
        )
        machine.api.tag(here, name, "1")  # the engine still has what it had
        assert await who(pull="missing") == ("", False)
        async with opened(reference, tmp_path, pull=always, environment={"A": "b"}, **login) as model:
            assert (await model.predict([{"tenure": 1}]))[0]["who"] == "newer"
        machine.api.tag(here, name, "1")
        async with opened(reference, tmp_path, pull="never", **login) as model:
            machine.api.tag(newer, name, "1")
            assert await model.changed()

    run(main())


@pytest.mark.parametrize("pull", ["missing", "always", "never"])
def test_an_image_that_can_be_had_no_more_does_not_cost_the_model_that_runs(
    pull: str, engine: Engine, pushed: tuple[str, str], login: Any, tmp_path: Path, run: Callable[..., Any]
) -> None:
    reference, _ = pushed

    async def main() -> None:
        if pull == "never":
            async with opened(reference, tmp_path, **login):
                pass
        async with opened(reference, tmp_path, pull=pull, **login) as model:
            model._source._login["password"] = "is another now"
            engine.api.remove_image(reference, force=True)  # by hand, or by a prune
            assert await model.changed() is False
            await model.predict([{"tenure": 1}])

    run(main())


def test_an_image_that_is_here_does_without_its_registry(
    engine: Engine, machine: Engine, score_image: str, tmp_path: Path, run: Callable[..., Any]
) -> None:
    name = f"127.0.0.1:{free_port()}/models/{machine.prefix}-kept"
    machine.api.tag(score_image, name, "1")

    async def main() -> None:
        async with opened(f"{name}:1", tmp_path, pull="always") as model:
            await model.predict([{"tenure": 1}])

    try:
        run(main())
    finally:
        machine.api.remove_image(f"{name}:1")


def test_check_tells_without_starting_anything(
    engine: Engine, pushed: tuple[str, str], private: Registry, score_image: str
) -> None:
    def problems(image: str, extra: str = "") -> list[str]:
        files = {
            "integrations/models.yaml": f"""
                ml:
                  sources:
                    score: {{source: {{type: docker, image: "{image}"{extra}}}}}
                """
        }
        return [problem.message for problem in check_problems(files) if problem.severity == "error"]

    login = f', credentials: {{username: {private.username}, password: "{private.password}"}}'
    assert problems(score_image) == []
    assert problems(pushed[0], login) == []
    (absent,) = problems(pushed[0].replace(":1", ":2"), login)
    assert "the registry has no image" in absent
    (refused,) = problems(pushed[0])
    assert "the registry refuses to give the image" in refused
    (no_volume,) = problems(score_image, ', volumes: {"./nowhere": /models}')
    assert "volumes: './nowhere': there is no file or folder" in no_volume
    assert engine.containers() == []
    assert pushed[0] not in [tag for image in engine.api.images() for tag in image["RepoTags"] or ()]


def test_a_reference_is_split_at_its_tag_or_digest() -> None:
    digest = f"sha256:{'0' * 64}"
    assert split_reference("score") == ("score", "latest")
    assert split_reference("score:1") == ("score", "1")
    assert split_reference("host:5000/a/score") == ("host:5000/a/score", "latest")
    assert split_reference("host:5000/a/score:1") == ("host:5000/a/score", "1")
    assert split_reference(f"host:5000/a/score@{digest}") == ("host:5000/a/score", digest)


def test_a_port_without_its_protocol_is_one_of_tcp() -> None:
    """As other tools than docker build write it into an image."""
    assert exposed_ports({"Config": {"ExposedPorts": {"8080": {}}}}) == (8080,)
    assert exposed_ports({"Config": {"ExposedPorts": {"8080/tcp": {}, "53/udp": {}, "9000-9002": {}}}}) == (8080,)
    assert exposed_ports({"Config": {"ExposedPorts": None}}) == ()


def test_the_kinds_are_the_ones_of_the_plugins() -> None:
    assert (DOCKER.name, HTTP.name) == ("docker", "http")
