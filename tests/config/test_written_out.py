"""Secrets that stand in a configuration as they are, in what is shown and kept of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml

from orchestrator_core.config.load import load_configuration
from orchestrator_core.config.written_out import names_a_secret
from orchestrator_core.config.yaml import Document, parse_document
from orchestrator_core.testing.service import write_files


def masked(line: str) -> str:
    return Document("a.yaml", line).shown_line(1)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("password: hunter2", "password: *******"),
        ("  password: hunter2  # of staging", "  password: *******  # of staging"),
        ("password: a, b}c", "password: ******"),
        ("auth: {basic: {username: ada, password: hunter2}}", "auth: {basic: {username: ada, password: *******}}"),
        ('headers: {Authorization: "Bearer a\\"b", X: 1}', 'headers: {Authorization: "***********", X: 1}'),
        ("headers: {'X-Api-Key': 'it''s'}", "headers: {'X-Api-Key': '*****'}"),
        ('client_secret: "not closed', 'client_secret: "**********'),
        ("db_password: $2b$12$abc", "db_password: **********"),
        ("token: 12345", "token: *****"),
        ("bearer: abc, Cookie: def", "bearer: ****************"),
        ("secret: &of_staging hunter2", "secret: &of_staging *******"),
        ('connection_string: "postgresql://ada:hunter2@db/x', 'connection_string: "postgresql://ada:*******@db/x'),
        ("a: 'postgresql://ada@db/x?password=hunter2&b=1'", "a: 'postgresql://ada@db/x?password=*******&b=1'"),
        ("{endpoint: /score?api_key=hunter2}", "{endpoint: /score?api_key=*******}"),
        ('a: "postgresql://ada:h@nt/er2@db/x", to: b@c', 'a: "postgresql://ada:*@******@db/x", to: b@c'),
        ("client_secret: ${env:CLIENT:-hunter2}", "client_secret: ${env:CLIENT:-*******}"),
        ('{Cookie: "a=${env:SESSION:-hunter2}; b"}', '{Cookie: "a=${env:SESSION:-*******}; b"}'),
        ("x: ${env:DB_PASSWORD:-hunter2}", "x: ${env:DB_PASSWORD:-*******}"),
        ('u: "postgresql://ada:${env:DB:-hunter2}@db"', 'u: "postgresql://ada:${env:DB:-*******}@db"'),
    ],
)
def test_a_line_is_shown_without_its_secrets_and_as_long_as_it_was(line: str, shown: str) -> None:
    assert masked(line) == shown
    assert len(shown) == len(line)


@pytest.mark.parametrize(
    "line",
    [
        "password: ${env:DB_PASSWORD}",
        "base_url: http://${env:HOST:-localhost}:8080/search?sort_key=name&tokens=5",
        "endpoint: /score?key=${env:KEY}&token=$params.token",
        "connection_string: mysql://ada@db/x?ssl_key=certs/key.pem",
        'Authorization: "Bearer ${file:secrets/token}"',
        "password: $ENV[DB_PASSWORD]",
        "params: {token: $request.body.token, customer_id: $customer.id}",
        "params: {token: string, secret: integer}",
        "token_url: https://login.example.com/token",
        "max_tokens: 100",
        "api_key_header: X-Key",
        "secret_file: secrets/token",
        "auth: {oauth2: {client_id: ada}}",
        "auth: {bearer: {}}",
        "password: |",
        "password:",
        "description: the password is kept elsewhere",
        "tokenizer_config:",
    ],
)
def test_placeholders_expressions_types_and_what_is_about_a_secret_are_shown(line: str) -> None:
    assert masked(line) == line


BROKEN = {
    "a quote that is not closed": 'password: "hunter2-unclosed\n',
    "a flow that is not closed": "auth: {basic: {username: ada, password: hunter2-unclosed\n",
    "a tab": "\tpassword: hunter2-unclosed\n",
    "a character": "password: hunter2-unclosed\x07\n",
    "twice": "password: hunter2-unclosed\npassword: hunter2-unclosed\n",
    "a colon": "a: 1\npassword: hunter2-unclosed: 2\n",
    "an URL": 'connection_string: "postgresql://ada:hunter2-unclosed@db/x\n',
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_what_is_no_yaml_is_told_without_its_secrets(text: str) -> None:
    problems = parse_document(text, "database.yaml").problems
    assert problems
    for problem in problems:
        assert "hunter2" not in f"{problem}{problem!r}{problem.source_line}"


TEXT = """\
# how the bureau is asked
api:
  sources:
    bureau:
      base_url: "https://ada:hunter2@bureau.example.com"
      auth: {bearer: hunter2-bearer}
      headers:
        X-Api-Key: hunter2-key
        Cookie: "${env:COOKIE}"
        private_key: |
          -----BEGIN-----
          hunter2-block

        secret: >-
          hunter2-folded
          and more
        tokens: [1, 2]
        api-keys: [hunter2-first, "hunter2-second"]
      password: 12345
  operations:
    get: {path: "/{token}", params: {token: string}}
"""


def test_a_text_is_kept_without_its_secrets_and_is_yaml_of_the_same_structure() -> None:
    shown = parse_document(TEXT, "api.yaml").shown_text()
    assert "hunter2" not in shown
    bureau = yaml.safe_load(shown)["api"]["sources"]["bureau"]
    assert bureau == {
        "base_url": "https://ada:***@bureau.example.com",
        "auth": {"bearer": "***"},
        "headers": {
            "X-Api-Key": "***",
            "Cookie": "${env:COOKIE}",
            "private_key": "***",
            "secret": "***",
            "tokens": [1, 2],
            "api-keys": ["***", "***"],
        },
        "password": "***",
    }
    assert shown.splitlines()[0] == "# how the bureau is asked"
    assert yaml.safe_load(shown)["api"]["operations"] == yaml.safe_load(TEXT)["api"]["operations"]


def test_merged_and_repeated_values_are_masked_where_they_stand() -> None:
    text = "a: &a {password: hunter2, user: ada}\nb: {<<: *a, user: bob}\nsecret: &s hunter2\ntoken: *s\n"
    shown = parse_document(text, "a.yaml").shown_text()
    assert "hunter2" not in shown
    assert yaml.safe_load(shown) == {
        "a": {"password": "***", "user": "ada"},
        "b": {"password": "***", "user": "bob"},
        "secret": "***",
        "token": "***",
    }


def test_a_configuration_keeps_its_texts_without_secrets(tmp_path: Path) -> None:
    write_files(tmp_path, {"config.yaml": "tracking: {capture: full}\n", "integrations/api.yaml": TEXT})
    configuration = load_configuration(tmp_path, environment={"COOKIE": "a=b"})
    assert "hunter2" not in "".join(configuration.texts.values())
    assert "${env:COOKIE}" in configuration.texts["integrations/api.yaml"]


@pytest.mark.parametrize(
    ("key", "does"),
    [
        *((key, True) for key in ("password", "PGPASSWORD", "db_passwd", "X-Auth-Token", "AWS_SECRET_ACCESS_KEY")),
        *((key, False) for key in ("client_id", "token_url", "token-type", "key", "passenger")),
    ],
)
def test_which_keys_name_a_secret(key: str, does: bool) -> None:
    assert names_a_secret(key) == does


ODD = (
    "\r",
    "\r\n",
    "\x85",
    "\u2028",
    "\t",
    '"',
    "'",
    "{",
    "[",
    "|",
    ">",
    "&a ",
    "*a",
    "!x ",
    "😀",
    "#",
    "- ",
    "? ",
    ": ",
    "\n",
)


def test_whatever_stands_in_a_file_it_is_shown_and_what_was_yaml_still_is() -> None:
    chance = random.Random(5)
    for _ in range(500):
        text = TEXT
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(text))
            text = text[:at] + chance.choice(ODD) + text[at:]
        text = text[: chance.choice((len(text), chance.randrange(len(text))))]
        document = parse_document(text, "a.yaml")
        shown = document.shown_text()
        if not document.problems:
            assert not parse_document(shown, "a.yaml").problems, text
