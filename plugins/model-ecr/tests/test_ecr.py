"""Models in images of ECR: by tag and by digest, with logins that end, and when AWS or the registry is down."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from attrs import evolve
from docker_kit import DOMAIN, OPTIONS, Engine
from ecr_kit import ACCOUNT, PASSWORD, REGION, Ecr
from orchestrator_model_ecr.aws import LOGINS, Aws
from orchestrator_model_ecr.options import EcrOptions
from orchestrator_model_ecr.plugin import ECR, orchestrator_model_kinds

from orchestrator_core.plugin_api import Identity, SourceError, SourceUnavailable
from orchestrator_core.testing import check_problems, free_port, service

Run = Callable[..., Any]


async def who(ecr: Ecr, folder: Path, **options: Any) -> tuple[str, Identity]:
    async with ecr.opened(folder, **options) as model:
        return (await model.predict([{"tenure": 1}]))[0]["who"], model.identity()


def test_the_plugin_provides_the_kind_ecr() -> None:
    assert orchestrator_model_kinds() == [ECR]


def test_a_tag_is_resolved_and_pulled_by_its_digest_which_is_the_identity(
    ecr: Ecr, score_image: str, tmp_path: Path, run: Run
) -> None:
    ecr.create()
    digest = ecr.push(score_image, "v1")

    async def main() -> None:
        async with ecr.opened(tmp_path, tag="v1") as model:
            assert model.identity() == Identity(f"{ecr.host}/{ecr.repository}", "v1", digest)
            container = ecr.engine.only()
            assert container.attrs["Config"]["Image"] == f"{ecr.host}/{ecr.repository}@{digest}"
            assert container.attrs["HostConfig"]["CapDrop"] == ["ALL"]
            assert not await model.changed()

    run(main())
    manifests = {what for what in ecr.gate.asked if "/manifests/" in what}
    assert manifests
    assert {what.rpartition("/")[2] for what in manifests} == {digest}  # never by the tag
    assert ecr.here() == [f"{ecr.repository}:v1", f"{ecr.repository}@{digest}"]


def test_an_image_by_digest_needs_no_aws_once_it_is_here(ecr: Ecr, score_image: str, tmp_path: Path, run: Run) -> None:
    ecr.create()
    digest = ecr.push(score_image, "v1")
    assert run(who(ecr, tmp_path, digest=digest))[1] == Identity(f"{ecr.host}/{ecr.repository}", "", digest)
    assert (ecr.api.count("DescribeImages"), ecr.api.count("GetAuthorizationToken")) == (0, 1)
    ecr.api.asked.clear()
    ecr.gate.asked.clear()
    run(who(ecr, tmp_path, digest=digest))
    assert (ecr.api.asked, ecr.gate.asked) == ([], [])


def test_a_tag_that_moves_between_two_loads_is_followed(
    ecr: Ecr, machine: Engine, score_image: str, tmp_path: Path, run: Run
) -> None:
    ecr.create()
    first = ecr.push(score_image, "live")
    newer = machine.image("newer", changes=["ENV WHO=newer"])

    async def main() -> None:
        assert await who(ecr, tmp_path, tag="live") == ("", Identity(f"{ecr.host}/{ecr.repository}", "live", first))
        async with ecr.opened(tmp_path, tag="live") as old:
            second = ecr.push(newer, "live")
            assert await old.changed()
            # As a reload does: the new one beside the old, which goes on until it is given up.
            assert await who(ecr, tmp_path, tag="live") == (
                "newer",
                Identity(f"{ecr.host}/{ecr.repository}", "live", second),
            )
            assert (await old.predict([{"tenure": 1}]))[0]["who"] == ""
            assert old.identity().digest == first

    run(main())


def test_a_login_is_asked_for_once_and_again_before_it_ends(
    ecr: Ecr, score_image: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ecr.create()
    ecr.push(score_image, "v1")

    async def load() -> None:
        ecr.forget()
        await who(ecr, tmp_path, tag="v1")

    run(load())
    run(load())
    assert ecr.api.count("GetAuthorizationToken") == 1
    ecr.api.lives_seconds = 60
    monkeypatch.setattr("orchestrator_model_ecr.aws.LOGINS._known", {})
    run(load())
    run(load())
    assert ecr.api.count("GetAuthorizationToken") == 3  # what ends in a minute is not used for another pull


def test_several_models_at_once_share_one_login(ecr: Ecr, score_image: str, tmp_path: Path, run: Run) -> None:
    options = EcrOptions(repository="a", region=REGION, endpoint_url=ecr.api.url)

    async def main() -> None:
        logins = await asyncio.gather(*(asyncio.to_thread(Aws(options).login) for _ in range(8)))
        assert {login.password for login in logins} == {PASSWORD}

    run(main())
    assert ecr.api.count("GetAuthorizationToken") == 1


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_login_that_is_refused_is_renewed_once(
    status: int, ecr: Ecr, score_image: str, tmp_path: Path, run: Run
) -> None:
    """401 is an old password at the registry itself; 403 and 500 are how an end surfaces on the way."""
    ecr.create()
    ecr.push(score_image, "v1")
    if status == 401:
        ecr.api.passwords = ["a password that has ended", PASSWORD]
    else:
        ecr.gate.answers = [status] * 2  # the engine asks for the head, then for the manifest
    assert run(who(ecr, tmp_path, tag="v1"))[0] == ""
    assert ecr.api.count("GetAuthorizationToken") == 2


def test_a_login_that_ends_in_the_middle_is_renewed(
    ecr: Ecr, machine: Engine, score_image: str, tmp_path: Path, run: Run
) -> None:
    ecr.create()
    ecr.push(score_image, "v1")
    ecr.push(machine.image("later", changes=["ENV WHO=later"]), "v2")
    assert run(who(ecr, tmp_path, tag="v1"))[0] == ""
    ((account, login),) = LOGINS._known.items()
    LOGINS._known[account] = evolve(login, password="ended")  # at the registry, hours before its time
    assert run(who(ecr, tmp_path, tag="v2"))[0] == "later"
    assert ecr.api.count("GetAuthorizationToken") == 2


def test_a_registry_that_refuses_every_login_is_named(ecr: Ecr, score_image: str, tmp_path: Path) -> None:
    ecr.create()
    ecr.push(score_image, "v1")
    ecr.api.passwords = ["wrong"]
    error = ecr.failure(tmp_path, tag="v1")
    assert isinstance(error, SourceError)
    assert str(error).endswith(
        "the registry does not take the login that AWS gave: check that the credentials may pull from "
        f"{ecr.repository} (ecr:BatchGetImage), and registry_id"
    )
    assert ecr.api.count("GetAuthorizationToken") == 2


def test_a_registry_that_answers_500_may_come_back(ecr: Ecr, score_image: str, tmp_path: Path) -> None:
    ecr.create()
    ecr.push(score_image, "v1")
    ecr.gate.answers = [500] * 50
    error = ecr.failure(tmp_path, tag="v1")
    assert isinstance(error, SourceUnavailable)
    assert error.started is False
    assert str(error).startswith(f"the image {ecr.host}/{ecr.repository}@sha256:")
    assert "cannot be pulled: " in str(error)


def test_an_image_that_is_here_does_without_aws_and_without_its_registry(
    ecr: Ecr, machine: Engine, score_image: str, tmp_path: Path, run: Run
) -> None:
    ecr.create()
    digest = ecr.push(score_image, "v1")
    run(who(ecr, tmp_path, tag="v1"))
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert run(who(ecr, tmp_path, tag="v1", endpoint_url=nowhere))[1].digest == digest  # AWS is down
    ecr.push(machine.image("newer", changes=["ENV WHO=newer"]), "v1")
    ecr.gate.answers = [500] * 50  # the registry is down, and has something newer
    assert run(who(ecr, tmp_path, tag="v1")) == ("", Identity(f"{ecr.host}/{ecr.repository}", "v1", digest))
    ecr.gate.answers = []
    assert run(who(ecr, tmp_path, tag="v1"))[0] == "newer"


@pytest.mark.parametrize("code", ["AccessDeniedException", "ImageNotFoundException", "RepositoryNotFoundException"])
def test_a_reload_that_aws_does_not_tell_of_the_image_keeps_the_model_that_runs(
    code: str, ecr: Ecr, score_image: str, tmp_path: Path, run: Run
) -> None:
    ecr.create()
    ecr.push(score_image, "v1")

    async def main() -> None:
        async with ecr.opened(tmp_path, tag="v1") as model:
            ecr.api.errors = [(400, code, "said")]
            assert await model.changed() is False
            assert ecr.api.errors == []
            await model.predict([{"tenure": 1}])

    run(main())


def test_a_service_that_aws_denies_access_reloads_and_starts_its_container_again(
    ecr: Ecr, score_image: str, tmp_path: Path, run: Run
) -> None:
    ecr.create()
    ecr.push(score_image, "v1")
    model = {"type": "ecr", "tag": "v1", **OPTIONS, **ecr.options}
    files = {
        "integrations/models.yaml": json.dumps({"ml": {"sources": {"score": {"source": model}}}}),
        "domains/d.yaml": DOMAIN,
    }

    async def main() -> None:
        async with service(files, folder=tmp_path / "config") as shop:
            before = ecr.engine.only()
            ecr.api.errors = [(400, "AccessDeniedException", "said")] * 50
            assert (await shop.reload()).status == 200
            assert ecr.engine.only().id == before.id
            before.kill()
            async with asyncio.timeout(20):
                while (await shop.admin("GET", "/models/score")).json["starts"] < 2:  # noqa: ASYNC110 - it is asked
                    await asyncio.sleep(0.05)
                while (await shop.post("/orchestrator/d/score", {"tenure": 1})).status != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert len(ecr.api.errors) == 49  # the reload alone has asked

    run(main())


def test_pull_never_asks_nobody_at_a_reload_either(
    ecr: Ecr, machine: Engine, score_image: str, tmp_path: Path, run: Run
) -> None:
    ecr.create()
    ecr.push(score_image, "v1")
    run(who(ecr, tmp_path, tag="v1"))
    name = f"{ecr.host}/{ecr.repository}"

    async def main() -> None:
        async with ecr.opened(tmp_path, tag="v1", pull="never") as model:
            ecr.push(machine.image("newer", changes=["ENV WHO=newer"]), "v1")
            ecr.api.asked.clear()
            assert await model.changed() is False  # what is here is the same
            assert ecr.api.asked == []
            ecr.engine.api.remove_image(f"{name}:v1", force=True)
            assert await model.changed() is False

    run(main())


@pytest.mark.parametrize("hangs", ["DescribeImages", "GetAuthorizationToken"])
def test_check_does_not_wait_long_for_aws_that_hangs(
    hangs: str, ecr: Ecr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator_model_ecr.aws._HURRY", (2, 0.2, 2))  # of which the test waits for a tenth
    over = threading.Event()
    answer = ecr.api.instead

    def instead(handler: Any, what: str) -> Any:
        if what == hangs:
            over.wait(20)
        return answer(handler, what)

    monkeypatch.setattr(ecr.api, "instead", instead)
    options = {**ecr.options, "tag" if hangs == "DescribeImages" else "digest": "v1"}
    if hangs == "GetAuthorizationToken":
        options["digest"] = f"sha256:{'0' * 64}"
    given = ", ".join(f'{name}: "{value}"' for name, value in options.items())
    began = monotonic()
    try:
        found = check_problems(
            {"integrations/models.yaml": f"ml: {{sources: {{score: {{source: {{type: ecr, {given}}}}}}}}}\n"}
        )
    finally:
        over.set()
    assert monotonic() - began < 8
    assert any("cannot be reached" in problem.message for problem in found)


def test_pull_never_asks_nobody(ecr: Ecr, score_image: str, tmp_path: Path, run: Run) -> None:
    ecr.create()
    ecr.push(score_image, "v1")
    error = ecr.failure(tmp_path, tag="v1", pull="never")
    assert str(error) == (f"the engine has no image {ecr.repository}:v1 of ECR, and pull is never: write pull: missing")
    assert ecr.api.asked == []
    run(who(ecr, tmp_path, tag="v1"))
    ecr.api.asked.clear()
    run(who(ecr, tmp_path, tag="v1", pull="never"))
    assert ecr.api.asked == []


# --- what AWS says, in one sentence each ----------------------------------------------------------------------------


def test_no_such_repository_and_no_such_tag(ecr: Ecr, score_image: str, tmp_path: Path) -> None:
    error = ecr.failure(tmp_path, tag="v1")
    assert isinstance(error, SourceError)
    assert str(error) == (
        f"ECR: the registry of account {ACCOUNT} in {REGION} has no repository {ecr.repository}: create it, or check "
        "region and registry_id"
    )
    ecr.create()
    ecr.push(score_image, "v1")
    error = ecr.failure(tmp_path, tag="v2")
    assert isinstance(error, SourceError)
    assert str(error) == (
        f"ECR: the repository {ecr.repository} in the registry of account {ACCOUNT} in {REGION} has no image with the "
        f"tag 'v2': push it, or see what there is with aws ecr list-images --repository-name {ecr.repository}"
    )
    absent = f"sha256:{'0' * 64}"
    error = ecr.failure(tmp_path, digest=absent)
    assert isinstance(error, SourceError)
    assert str(error).startswith(f"the registry has no image {ecr.host}/{ecr.repository}@{absent}: manifest ")


def test_the_wrong_region(ecr: Ecr, score_image: str, tmp_path: Path) -> None:
    ecr.create()
    ecr.push(score_image, "v1")
    error = ecr.failure(tmp_path, tag="v1", region="us-east-1")
    assert "in us-east-1 has no repository" in str(error)
    assert "check region and registry_id" in str(error)


def test_a_region_that_there_is_not_and_a_registry_of_another(ecr: Ecr, tmp_path: Path) -> None:
    aws = Aws(EcrOptions(repository="a", region="eu-wst-1"))
    assert aws._about_region() == ": 'eu-wst-1' is no region that is known: did you mean 'eu-west-1'?"
    host = f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com"
    with pytest.raises(ValueError, match="the registry is in the region us-east-1, not eu-west-1"):
        EcrOptions(repository="a", region="eu-west-1", registry=host)


def test_no_region_is_known(ecr: Ecr, tmp_path: Path) -> None:
    options = {name: value for name, value in ecr.options.items() if name != "region"}
    ecr.options = options
    error = ecr.failure(tmp_path, tag="v1")
    assert isinstance(error, SourceError)
    assert str(error) == "ECR: no AWS region is known: write region, or set AWS_DEFAULT_REGION"


def test_no_credentials(ecr: Ecr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    error = ecr.failure(tmp_path, tag="v1")
    assert isinstance(error, SourceError)
    assert str(error) == (
        "ECR: there are no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile, or run "
        "where a role is attached (Unable to locate credentials)"
    )
    error = ecr.failure(tmp_path, tag="v1", profile="production")
    assert str(error) == "ECR: the AWS configuration has no profile 'production': check profile"


@pytest.mark.parametrize(
    ("status", "code", "kind", "says"),
    [
        (
            400,
            "ExpiredTokenException",
            SourceUnavailable,
            r"ECR: the AWS credentials have expired: renew them, .*aws sso",
        ),
        (
            400,
            "UnrecognizedClientException",
            SourceError,
            r"ECR: AWS does not accept these credentials: check the access",
        ),
        (
            400,
            "AccessDeniedException",
            SourceError,
            r"ECR: access denied to the repository models/.*ecr:DescribeImages",
        ),
        (400, "ThrottlingException", SourceUnavailable, r"ECR: AWS limits the rate of requests: it is tried again"),
        (500, "ServerException", SourceUnavailable, r"ECR: AWS answered 500: it is tried again \(said\)"),
        (
            400,
            "InvalidParameterException",
            SourceError,
            r"ECR: AWS refuses the request: InvalidParameterException: said",
        ),
    ],
)
def test_what_aws_refuses(
    status: int, code: str, kind: type[Exception], says: str, ecr: Ecr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator_model_ecr.aws._ATTEMPTS", 2)
    ecr.api.errors = [(status, code, "said")] * 2
    error = ecr.failure(tmp_path, tag="v1")
    assert type(error) is kind
    assert re.match(says, str(error)), str(error)
    assert "\n" not in str(error)


def test_a_page_in_place_of_an_answer_is_told_in_one_line_with_a_doubt_about_the_region(
    ecr: Ecr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator_model_ecr.aws._ATTEMPTS", 2)
    ecr.api.errors = [(500, "", "<!doctype html>\n<title>500</title>\n<p>It is " + "overloaded " * 60 + "</p>\n")] * 2
    error = ecr.failure(tmp_path, tag="v1", region="eu-wst-1")
    assert isinstance(error, SourceUnavailable)
    start = (
        "ECR: AWS answered 500: it is tried again; 'eu-wst-1' is no region that is known: did you mean 'eu-west-1'? "
        "(500 It is overloaded "
    )
    assert str(error).startswith(start)
    assert str(error).endswith("…)")
    assert "\n" not in str(error)


@pytest.mark.parametrize("field", ["imageDetails", "authorizationData"])
def test_an_answer_that_is_none_of_ecrs_is_no_missing_image(field: str, ecr: Ecr, tmp_path: Path) -> None:
    ecr.api.errors = [(200, "", "a page of a proxy")]
    wanted = {"tag": "v1"} if field == "imageDetails" else {"digest": f"sha256:{'0' * 64}"}
    error = ecr.failure(tmp_path, **wanted)
    assert isinstance(error, SourceUnavailable)
    assert error.started is False
    assert str(error) == (
        f"ECR: {ecr.api.url} answered without {field}, as ECR never does: check endpoint_url, and what stands "
        "before AWS"
    )


def test_a_throttled_request_is_repeated(ecr: Ecr, score_image: str, tmp_path: Path, run: Run) -> None:
    ecr.create()
    ecr.push(score_image, "v1")
    ecr.api.errors = [(400, "ThrottlingException", "slow down")] * 2
    run(who(ecr, tmp_path, tag="v1"))
    assert ecr.api.count("DescribeImages") == 3


def test_aws_that_cannot_be_reached(ecr: Ecr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator_model_ecr.aws._ATTEMPTS", 1)
    nowhere = f"http://127.0.0.1:{free_port()}"
    error = ecr.failure(tmp_path, tag="v1", endpoint_url=nowhere)
    assert isinstance(error, SourceUnavailable)
    assert error.started is False
    assert str(error).startswith(f"ECR: {nowhere} cannot be reached: check the network: ")


def test_check_tells_without_pulling(ecr: Ecr, score_image: str, tmp_path: Path) -> None:
    def problems(tag: str) -> list[str]:
        options = ", ".join(f'{name}: "{value}"' for name, value in {**ecr.options, "tag": tag}.items())
        text = f"ml: {{sources: {{score: {{source: {{type: ecr, {options}}}}}}}}}\n"
        found = check_problems({"integrations/models.yaml": text})
        return [problem.message for problem in found if problem.severity == "error"]

    ecr.create()
    ecr.push(score_image, "v1")
    assert problems("v1") == []
    (absent,) = problems("v2")
    assert "has no image with the tag 'v2'" in absent
    ecr.api.passwords = ["wrong"]
    LOGINS._known.clear()
    (refused,) = problems("v1")
    assert "the registry does not take the login that AWS gave" in refused
    assert ecr.here() == []


def test_options_that_do_not_fit_are_problems_at_their_lines() -> None:
    def problems(**options: str) -> list[str]:
        given = ", ".join(f"{name}: {value}" for name, value in {"type": "ecr", **options}.items())
        text = f"ml: {{sources: {{score: {{source: {{{given}}}}}}}}}\n"
        return [problem.message for problem in check_problems({"integrations/models.yaml": text}, offline=True)]

    digest = f'"sha256:{"0" * 64}"'
    assert problems(repository="a", tag="v1", digest=digest) == [
        "give either tag or digest: a digest already says which image it is"
    ]
    assert problems(repository='"host/a:v1"') == [
        "'host/a:v1' is no name of a repository: write it without registry and tag, such as models/credit"
    ]
    assert problems(repository="a", registry_id='"12"') == ["expected the 12 digits of an AWS account, got '12'"]
    assert problems(repository="a", digest="abc") == ["'abc' is no digest: write sha256: and 64 hexadecimal digits"]
