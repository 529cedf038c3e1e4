"""What the container of a model is: hardened, configured, reached on a port of this host, and gone afterwards."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from docker_kit import Engine, failure, opened
from orchestrator_model_docker.plugin import DOCKER, orchestrator_model_kinds

from orchestrator_core.plugin_api import Ends, Identified, KeepsLogs, ReadyCheck, SourceError
from orchestrator_core.testing import free_port

SHOW = """#!/bin/sh
printf 'Content-Type: application/json\\r\\n\\r\\n'
read -r line </data/given 2>/dev/null
touch /data/made /made 2>/dev/null
printf '{"who": "%s", "user": "%s", "given": "%s", "tmp": "%s"}' "$WHO" "$(id -u)" "$line" "$(touch /tmp/a && echo ok)"
"""


@pytest.fixture(scope="session")
def show_image(machine: Engine) -> str:
    """The image of a server that says what it sees."""
    return machine.image("show", files={"www/cgi-bin/predict": SHOW})


def test_the_plugin_provides_the_kind_docker() -> None:
    assert orchestrator_model_kinds() == [DOCKER]


def test_a_model_is_started_asked_and_taken_away(
    engine: Engine, score_image: str, tmp_path: Path, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        async with opened(score_image, tmp_path, environment={"WHO": "the container"}) as model:
            assert await model.predict([{"tenure": 12}, {"tenure": 3.5}]) == [
                {"tenure": 12, "who": "the container"},
                {"tenure": 3.5, "who": "the container"},
            ]
            await model.check_ready()
            assert all(isinstance(model, ability) for ability in (Ends, Identified, KeepsLogs, ReadyCheck))
        assert engine.containers() == []

    run(main())


@pytest.mark.parametrize("address", ["::1", "::", "0.0.0.0", "127.0.0.2"])
def test_a_model_is_reached_at_whichever_address_of_the_host_its_port_is_on(
    address: str, engine: Engine, score_image: str, tmp_path: Path, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        async with opened(score_image, tmp_path, host_address=address) as model:
            ((bound,),) = engine.only().attrs["NetworkSettings"]["Ports"].values()
            assert bound["HostIp"] == address
            await model.predict([{"tenure": 1}])

    run(main())


def process_status(pid: int) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())


def test_every_container_is_hardened(engine: Engine, score_image: str, tmp_path: Path, run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with opened(score_image, tmp_path):
            attrs = engine.only().attrs
            host = attrs["HostConfig"]
            ports = attrs["NetworkSettings"]["Ports"]
            assert (host["CapDrop"], host["CapAdd"], host["Privileged"]) == (["ALL"], None, False)
            assert host["SecurityOpt"] == ["no-new-privileges"]  # and not seccomp=unconfined: the default profile holds
            assert host["PidsLimit"] == 256
            assert [(port, [bound["HostIp"] for bound in to]) for port, to in ports.items()] == [
                ("8080/tcp", ["127.0.0.1"])
            ]
            assert (host["RestartPolicy"]["Name"], host["AutoRemove"], host["PidMode"]) in [
                ("", False, ""),
                ("no", False, ""),
            ]
            assert host["LogConfig"]["Config"] in ({"max-size": "10m", "max-file": "3"}, {})
            # What the kernel says of the process itself.
            status = process_status(attrs["State"]["Pid"])
            assert {status[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapInh")} == {"0000000000000000"}
            assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")

    run(main())


def test_what_is_configured_otherwise_is_otherwise(
    engine: Engine, score_image: str, tmp_path: Path, run: Callable[..., Any]
) -> None:
    options = {
        "limits": {"memory": "64MiB", "cpus": 0.5, "pids": -1},
        "capabilities": ["NET_BIND_SERVICE"],
        "no_new_privileges": False,
        "read_only": True,
        "user": 1000,
        "host_port": free_port(),
    }

    async def main() -> None:
        async with opened(score_image, tmp_path, **options):
            attrs = engine.only().attrs
            host = attrs["HostConfig"]
            assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (64 * 2**20, 64 * 2**20, 500_000_000)
            assert host["PidsLimit"] in (-1, 0, None)
            assert (host["CapAdd"], host["SecurityOpt"]) == (["NET_BIND_SERVICE"], None)
            assert (host["ReadonlyRootfs"], attrs["Config"]["User"]) == (True, "1000")
            assert attrs["NetworkSettings"]["Ports"]["8080/tcp"] == [
                {"HostIp": "127.0.0.1", "HostPort": str(options["host_port"])}
            ]

    run(main())


def test_environment_volumes_and_a_read_only_root_are_seen_inside(
    engine: Engine, show_image: str, tmp_path: Path, run: Callable[..., Any]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "given").write_text("from the host\n")
    data.chmod(0o777)

    async def seen(volumes: Any) -> Any:
        options = {"volumes": volumes, "environment": {"WHO": "a b$c"}, "user": "1000:1000", "read_only": True}
        async with opened(show_image, tmp_path, **options) as model:
            return (await model.predict([{}]))[0]

    async def main() -> None:
        inside = {"who": "a b$c", "user": "1000", "given": "from the host", "tmp": "ok"}
        assert await seen(["./data:/data:ro"]) == inside
        assert not (data / "made").exists()
        assert await seen({"./data": "/data"}) == inside
        assert (data / "made").exists()

    run(main())


def test_the_command_is_run_as_it_is_written(engine: Engine, machine: Engine, tmp_path: Path, run: Any) -> None:
    image = machine.image("command", command=["sh", "-c", "exit 9"])

    async def who(command: str | list[str]) -> Any:
        async with opened(image, tmp_path, command=command) as model:
            return (await model.predict([{"tenure": 1}]))[0]["who"]

    async def main() -> None:
        assert await who(["sh", "-c", "WHO='a list' exec httpd -f -p 8080 -h /www"]) == "a list"
        assert await who("env WHO='a string' httpd -f -p 8080 -h /www") == "a string"

    run(main())


def test_a_network_of_the_engine_and_that_of_the_host(
    engine: Engine, score_image: str, tmp_path: Path, run: Callable[..., Any]
) -> None:
    network = engine.client.networks.create(engine.prefix)
    port = free_port()

    async def main() -> None:
        async with opened(score_image, tmp_path, network=network.name) as model:
            assert list(engine.only().attrs["NetworkSettings"]["Networks"]) == [network.name]
            await model.predict([{"tenure": 1}])
        command = ["httpd", "-f", "-p", f"127.0.0.1:{port}", "-h", "/www"]
        async with opened(score_image, tmp_path, network="host", container_port=port, command=command) as model:
            assert engine.only().attrs["HostConfig"]["NetworkMode"] == "host"
            assert await model.predict([{"tenure": 1}]) == [{"tenure": 1, "who": ""}]

    try:
        run(main())
    finally:
        network.remove()


def test_identity_names_image_tag_and_digest(
    engine: Engine, score_image: str, tmp_path: Path, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        async with opened(score_image, tmp_path) as model:
            identity = model.identity()
            assert (identity.name, identity.version) == tuple(score_image.rsplit(":", 1))
            assert identity.digest == engine.client.images.get(score_image).id

    run(main())


def test_logs_are_the_last_lines(engine: Engine, machine: Engine, tmp_path: Path, run: Callable[..., Any]) -> None:
    chatty = "for i in 1 2 3 4 5; do echo line $i; done; sleep 0.3; echo oops >&2; exec httpd -f -p 8080 -h /www"
    image = machine.image("chatty", command=["sh", "-c", chatty])

    async def main() -> None:
        async with opened(image, tmp_path) as model:
            assert (await model.logs(3)).splitlines() == ["line 4", "line 5", "oops"]
            assert len((await model.logs(100)).splitlines()) == 6

    run(main())


def test_readiness_is_probed_and_not_slept_for(
    engine: Engine, machine: Engine, tmp_path: Path, run: Callable[..., Any]
) -> None:
    late = "httpd -p 8080 -h /www; sleep 1; echo yes >/www/ready; exec sleep 1000"
    image = machine.image("late", command=["sh", "-c", late])

    async def main() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        readiness = {"path": "/ready", "interval": "50ms"}
        async with opened(image, tmp_path, readiness=readiness, startup_delay=30):
            took = loop.time() - began
        assert 0.9 < took < 10, took

    run(main())


def test_a_model_that_is_not_ready_in_time_says_what_it_answered(
    engine: Engine, score_image: str, tmp_path: Path
) -> None:
    error = failure(score_image, tmp_path, readiness={"path": "/nowhere", "timeout": 1})
    assert "it was not ready within 1 s: GET http://127.0.0.1:" in str(error)
    assert "/nowhere: the model server answered 404" in str(error)
    assert getattr(error, "started", None) is True


def test_the_port_is_the_one_that_the_image_exposes_or_has_to_be_given(
    engine: Engine, machine: Engine, score_image: str, tmp_path: Path
) -> None:
    image = machine.image("ports", changes=["EXPOSE 9000"])
    error = failure(image, tmp_path)
    assert isinstance(error, ValueError)
    assert str(error) == f"the image {image} exposes several ports (8080, 9000): say container_port"


def test_the_labels_say_which_model_of_which_configuration(
    engine: Engine, score_image: str, tmp_path: Path, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        async with opened(score_image, tmp_path, environment={"TOKEN": "hunter2-hunter2"}):
            container = engine.only()
            labels = container.labels
            assert container.name.startswith("orchestrator-score-")
            assert labels["orchestrator.model"] == "ml.score.default"
            assert labels["orchestrator.config"] == str(tmp_path)
            assert "hunter2" not in json.dumps(labels) + container.name

    run(main())


def test_gpus_are_passed_on_to_the_engine(engine: Engine, score_image: str, tmp_path: Path) -> None:
    if "nvidia" in engine.client.info()["Runtimes"]:
        return  # then it starts, which is as good
    for gpus in ("all", 1, ["GPU-1"]):
        error = failure(score_image, tmp_path, gpus=gpus)
        assert isinstance(error, SourceError)
        assert str(error).startswith("gpus: the engine has no driver for GPUs: install the NVIDIA Container Toolkit")
