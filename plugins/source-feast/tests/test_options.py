"""What may be written under ``feast:``, and that reading it does not import Feast."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from orchestrator_source_feast.options import FeastOptions, OperationOptions
from orchestrator_source_feast.redis import Address, address

from orchestrator_core.errors import ConfigError
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
