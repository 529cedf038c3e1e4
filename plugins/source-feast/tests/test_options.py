"""What may be written under ``feast:``, and that reading it does not import Feast."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from orchestrator_source_feast.options import FeastOptions, OperationOptions
from orchestrator_source_feast.redis import Address, address

from orchestrator_core.errors import ConfigError
from orchestrator_core.plugin_api import Size
from orchestrator_core.testing import structured


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either repo_path, for the SDK in this process, or server_url, for a feature server"),
        (
            {"repo_path": "a", "server_url": "http://b"},
            "give either repo_path, for the SDK in this process, or server_url, for a feature server",
        ),
        ({"server_url": "feast:6566"}, "expected a URL that starts with http:// or https://"),
        ({"repo_path": "a", "timeout": 0}, "timeout must be more than 0, not 0"),
        ({"repo_path": "a", "pool_size": 0}, "pool_size must be more than 0, not 0"),
    ],
)
def test_a_source_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        structured(FeastOptions, options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": ["tier"]}, "'tier' is not a feature reference; expected feature_view:feature"),
        ({"features": ["a:b:c"]}, "'a:b:c' is not a feature reference; expected feature_view:feature"),
        ({"features": ["a:b"], "feature_service": "c"}, "give either features or feature_service, not both"),
        ({"features": ["a:b"], "max_age": "0s"}, "max_age must be more than 0, not 0"),
    ],
)
def test_an_operation_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        structured(OperationOptions, options)
    assert message in str(caught.value)


def test_what_may_hold_a_password_is_not_shown() -> None:
    options = structured(
        FeastOptions,
        {"server_url": "http://b", "headers": {"Authorization": "Bearer s3cret"}, "proxy": "http://u:s3cret@p:1"},
    )
    assert "s3cret" not in repr(options)
    assert "s3cret" not in repr(address("host:1,password=s3cret"))


def test_feast_is_not_imported_before_a_source_opens() -> None:
    code = "import sys, orchestrator_source_feast.plugin; sys.exit('feast' in sys.modules or 'pandas' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost:6379", Address("localhost", 6379)),
        ("a:1,db=2,password=12,username=me", Address("a", 1, 2, "me", "12")),
        ('a:1,password="x"', Address("a", 1, password="x")),
        ("a:1,ssl=true,ssl_ca_certs=/ca.pem", Address("a", 1, tls={"ssl_ca_certs": "/ca.pem"})),
        ("a:1,socket_timeout=0.5", Address("a", 1, answer_seconds=0.5)),
        ("a:1,b:2", None),
        ("a:1,ssl=true,ssl_cert_reqs=none", None),
        ("a:1,health_check_interval=3", None),
        ("a:x", None),
        ("a", None),
    ],
)
def test_only_a_connection_string_that_is_wholly_understood_is_used(text: str, expected: Address | None) -> None:
    assert address(text) == expected


README = Path(__file__).parent.parent / "README.md"


def shown(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, Size):
        return f"{default // 2**20} MiB"
    if isinstance(default, float):
        return f"{default:g} s"
    return f"`{default}`" if isinstance(default, str) else str(default)


def test_the_readme_has_every_option_with_its_default() -> None:
    section = README.read_text().partition("## Options of a source")[2].partition("\n## ")[0]
    told = dict(re.findall(r"^\| `(\w+)` \| (.*?) ?\|", section, re.MULTILINE))
    options = {each.name: each.default for each in attrs.fields(FeastOptions)}
    assert list(told) == [name for name in told if name in options]
    assert set(told) == set(options)
    plain = {name: default for name, default in options.items() if isinstance(default, bool | float | int | str)}
    assert {name: told[name] for name in plain} == {name: shown(default) for name, default in plain.items()}


def test_the_readme_has_every_option_of_an_operation() -> None:
    section = README.read_text().partition("## An operation")[2].partition("\n## ")[0]
    assert {each.name for each in attrs.fields(OperationOptions)} <= set(re.findall(r"`(\w+)`", section))
