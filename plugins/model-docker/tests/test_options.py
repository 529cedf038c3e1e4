"""What is wrong with a model's options is a problem at its line, before anything is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from orchestrator_model_docker.options import DockerOptions, RegistryCredentials, Volume, read_volumes

from orchestrator_core.testing import check_problems, structured


def problems(**options: Any) -> list[str]:
    model = {"type": "docker", "image": "score:1", **options}
    text = json.dumps({"ml": {"sources": {"score": {"source": model}}}})
    found = check_problems({"integrations/models.yaml": text}, offline=True)
    return [problem.message for problem in found if problem.severity == "error"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "score 1"}, "'score 1' is no image: write name:tag or name@sha256:… with 64 hexadecimal digits"),
        ({"pull": "sometimes"}, "expected one of always, missing, never, got 'sometimes'"),
        ({"container_port": 0}, "expected a port from 1 to 65535, got 0"),
        ({"environment": {"THREADS": 4}}, "expected a string, got an integer 4: put it in quotes"),
        ({"environment": {"THREADS=4": ""}}, "'THREADS=' is no name of a variable: write THREADS: value"),
        ({"environment": {"": "4"}}, "'=' is no name of a variable: write NAME: value"),
        ({"command": "serve --name 'a b"}, "it cannot be split as a shell would: no closing quotation"),
        ({"host_address": "localhost"}, "'localhost' is no IP address: write one of this host's, such as 127.0.0.1"),
        ({"volumes": {"./a": "b"}}, "'./a:b': expected source:/path/in/the/container, or that with :ro"),
        ({"volumes": ["./a:/a:readonly"]}, "'./a:/a:readonly': unknown mode 'readonly': write ro or rw"),
        ({"volumes": ["./a:/a", "./b:/a"]}, "/a is given twice"),
        ({"readiness": {"path": "health"}}, "expected a path that starts with /, got 'health'"),
        ({"readiness": {"timeout": 0}}, "expected more than 0, got 0"),
        (
            {"limits": {"memory": "1MiB"}},
            "expected at least 6MiB, which is the least that an engine takes, got 1048576 bytes",
        ),
        ({"limits": {"cpus": 0}}, "expected more than 0, got 0"),
        ({"limits": {"pids": 0}}, "expected at least 1, or -1 for no limit, got 0"),
        ({"capabilities": ["net_admin"]}, "'net_admin' is no capability: write it as NET_BIND_SERVICE"),
        ({"network": "none"}, "a model without a network cannot be asked: name a network, or leave it out"),
        ({"network": "host"}, "in the network of the host, container_port has to be given"),
        (
            {"network": "host", "container_port": 8080, "host_port": 8081},
            "in the network of the host there are no ports to map: leave host_port out",
        ),
    ],
)
def test_an_option_that_does_not_fit_says_what_would(options: dict[str, Any], message: str) -> None:
    assert problems(**options) == [message]


@pytest.mark.parametrize(
    "options",
    [
        {"pull": True},
        {"pull": "never", "gpus": "all"},
        {"gpus": 2},
        {"gpus": ["GPU-1"]},
        {"command": ["serve", "--port", "8080"], "user": "1000:1000"},
        {"command": "serve --port 8080", "user": 1000},
        {"image": f"host:5000/models/score@sha256:{'0' * 64}"},
        {"volumes": {"./models": "/app/models", "cache": "/cache:rw", "/data": "/data:ro"}},
        {"startup_delay": 30, "readiness": {"path": "/health", "timeout": "2m", "interval": "100ms"}},
        {"host_address": "::1", "environment": {"EMPTY": ""}},
        {"protocol": "v2", "model_name": "credit", "timeout": "1s"},
    ],
)
def test_what_the_documentation_shows_is_taken(options: dict[str, Any]) -> None:
    assert problems(**options) == []


def test_volumes_are_paths_or_names() -> None:
    volumes = read_volumes({"./models": "/app/models", "cache": "/cache:rw", "../a/b": "/b:ro"})
    assert volumes == (
        Volume("./models", "/app/models"),
        Volume("cache", "/cache", "rw"),
        Volume("../a/b", "/b", "ro"),
    )
    assert [volume.is_path for volume in volumes] == [True, False, True]


def test_paths_are_relative_to_the_configuration_folder(tmp_path: Path) -> None:
    options = structured(DockerOptions, {"image": "a", "volumes": ["../models:/m:ro", "cache:/cache", "/data:/data"]})
    config = tmp_path / "config"
    assert options.binds(config) == [f"{tmp_path}/models:/m:ro", "cache:/cache", "/data:/data"]


def test_startup_delay_is_a_lower_bound_of_the_readiness_timeout() -> None:
    def within(**options: Any) -> float:
        seconds: float = structured(DockerOptions, {"image": "a", **options}).ready_within_seconds
        return seconds

    assert within() == 60
    assert within(startup_delay=90) == 90
    assert within(startup_delay=10, readiness={"timeout": 20}) == 20


def test_what_is_only_for_calls_makes_no_other_container(tmp_path: Path) -> None:
    def settings(**options: Any) -> Any:
        return structured(DockerOptions, {"image": "a", **options}).settings(tmp_path)

    assert settings(timeout="9s", headers={"A": "b"}, readiness={"path": "/health"}, stop_timeout=1) == settings()
    others: list[dict[str, Any]] = [
        {"environment": {"A": "b"}},
        {"command": "serve"},
        {"limits": {"pids": 9}},
        {"volumes": {"./a": "/a"}},
        {"user": "1"},
        {"host_port": 9000},
        {"read_only": True},
    ]
    assert all(settings(**other) != settings() for other in others)


def test_a_password_does_not_show_itself() -> None:
    assert repr(RegistryCredentials("ada", "s3cret")) == "RegistryCredentials(username='ada', password='***')"
