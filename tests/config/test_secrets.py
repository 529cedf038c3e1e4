"""Secrets: where they come from, and that they are shown nowhere."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import quote, quote_plus

import orjson
import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_core.config.load import load_configuration
from orchestrator_core.config.secrets import MASK, Redactor, Resolved, Secret, resolve_secrets
from orchestrator_core.config.structure import Located, structure
from orchestrator_core.config.yaml import parse_document
from orchestrator_core.plugin_api import option
from orchestrator_core.testing import check_problems
from orchestrator_core.testing.service import write_files

ENVIRONMENT = {"NAME": "value", "EMPTY": "", "DOLLAR": "${env:NAME}", "TOKEN": "tok$$en"}


def resolved(text: str, folder: Path = Path("/nowhere")) -> Resolved:
    return resolve_secrets(parse_document(f"key: {text}\n", "database.yaml"), folder, ENVIRONMENT)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("${env:NAME}", "value"),
        ("$ENV[NAME]", "value"),
        ('"a ${env:NAME} b $ENV[NAME] c"', "a value b value c"),
        ("${env:EMPTY}", ""),
        ("${env:EMPTY:-default}", ""),
        ("${env:ABSENT:-default}", "default"),
        ("${env:ABSENT:-}", ""),
        ("${env:ABSENT:-a:b-c d}", "a:b-c d"),
        ("${env:ABSENT:-http://host:1/x}", "http://host:1/x"),
        ("${env:DOLLAR}", "${env:NAME}"),
        ("${env:TOKEN}", "tok$$en"),
        ('"$${env:NAME}"', "${env:NAME}"),
        ('"$${env:NAME} ${env:NAME}"', "${env:NAME} value"),
        ('"$NAME"', "$NAME"),
        ('"$$"', "$$"),
        ('"100 $"', "100 $"),
        ('"$ENV"', "$ENV"),
        ("[x, '${env:NAME}', {y: '$ENV[NAME]'}]", None),
    ],
)
def test_a_placeholder_is_replaced_by_what_it_stands_for(written: str, value: str | None) -> None:
    done = resolved(f"'{written}'" if written[0] not in "\"'[" else written)
    assert not done.problems
    assert done.data == {"key": value if value is not None else ["x", "value", {"y": "value"}]}


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        (
            "${env:ABSENT}",
            (
                "database.yaml:1:7: ORC301 the environment variable ABSENT is not set\n"
                '    1 | key: "${env:ABSENT}"\n'
                "      |       ^^^^^^^^^^^^^\n"
                "      = set it, or give a default: ${env:ABSENT:-value}"
            ),
        ),
        (
            "x $ENV[NAMES] y",
            (
                "database.yaml:1:9: ORC301 the environment variable NAMES is not set\n"
                '    1 | key: "x $ENV[NAMES] y"\n'
                "      |         ^^^^^^^^^^^\n"
                "      = did you mean 'NAME'?"
            ),
        ),
        (
            "${vault:x}",
            (
                "database.yaml:1:7: ORC302 unknown secret source 'vault'\n"
                '    1 | key: "${vault:x}"\n'
                "      |       ^^^^^^^^^^\n"
                "      = expected one of: env, file"
            ),
        ),
        (
            "${envv:x}",
            (
                "database.yaml:1:7: ORC302 unknown secret source 'envv'\n"
                '    1 | key: "${envv:x}"\n'
                "      |       ^^^^^^^^^\n"
                "      = did you mean 'env'?"
            ),
        ),
        (
            "${file:absent}",
            (
                "database.yaml:1:7: ORC303 cannot read the secret file absent: No such file or directory\n"
                '    1 | key: "${file:absent}"\n'
                "      |       ^^^^^^^^^^^^^^"
            ),
        ),
    ],
)
def test_a_placeholder_that_stands_for_nothing_is_a_problem_at_its_place(written: str, problem: str) -> None:
    assert [str(found) for found in resolved(f'"{written}"').problems] == [problem]


@pytest.mark.parametrize("written", ["${env:}", "${env}", "${env::-x}", "$ENV[]", "${file:}", "${file}"])
def test_a_placeholder_that_names_nothing_is_a_problem_and_no_variable_or_file(written: str) -> None:
    (problem,) = resolved(f'"{written}"').problems
    assert (problem.code, problem.message) == ("ORC302", "the placeholder names nothing")


@pytest.mark.parametrize(
    ("written", "at", "message"),
    [
        ("pre ${env:NAME", 5, "'${' has no '}', or another { or } before it"),
        ("${env:NOT_THERE:-${env:NAME}}", 1, "'${' has no '}', or another { or } before it"),
        ("${env:NOT_THERE:-{}}", 1, "'${' has no '}', or another { or } before it"),
        ("$ENV[NAME", 1, "'$ENV[' has no ']', or another [ or ] before it"),
    ],
)
def test_a_placeholder_that_does_not_end_is_a_problem_and_no_text(written: str, at: int, message: str) -> None:
    """Else a credential would be what the file says, and the backend's refusal all that tells of it."""
    (problem,) = resolved(f'"{written}"').problems
    assert (problem.code, problem.column, problem.message) == ("ORC302", len('key: "') + at, message)
    assert problem.hint == "write ${env:NAME} or ${file:PATH}; $${ stands for ${ itself"


def test_every_problem_of_a_file_is_found(tmp_path: Path) -> None:
    text = "{a: '${env:A}', b: ['${env:B} ${nope:C}']}"
    codes = [problem.code for problem in resolved(text, tmp_path).problems]
    assert codes == ["ORC301", "ORC301", "ORC302"]


@pytest.mark.parametrize(
    ("content", "value"), [("s3cret\n", "s3cret"), ("s3cret\r\n", "s3cret"), (" a \n b ", " a \n b ")]
)
def test_a_secret_file_is_read_without_its_last_line_end(tmp_path: Path, content: str, value: str) -> None:
    (tmp_path / "secret").write_bytes(content.encode())
    for name in ("secret", tmp_path / "secret"):
        done = resolved(f"'${{file:{name}}}'", tmp_path)
        assert done.data == {"key": value}
        assert [path.name for path in done.files] == ["secret"]


@pytest.mark.parametrize("content", ["", "\n"])
def test_a_secret_file_that_is_empty_is_a_problem(tmp_path: Path, content: str) -> None:
    """Whoever writes it anew empties it first: a reload must not send requests without it meanwhile."""
    (tmp_path / "secret").write_text(content)
    done = resolved("'${file:secret}'", tmp_path)
    assert [problem.message for problem in done.problems] == ["cannot read the secret file secret: it is empty"]
    assert done.files == {tmp_path / "secret": ""}


def test_a_secret_file_that_is_not_text_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\xff\xfe")
    (problem,) = resolved("'${file:secret}'", tmp_path).problems
    assert problem.message == "cannot read the secret file secret: it is not UTF-8 text"


def test_a_secret_file_that_is_a_pipe_or_has_no_possible_name_is_a_problem(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (problem,) = resolved("'${file:pipe}'", tmp_path).problems
    assert problem.message == "cannot read the secret file pipe: it is a pipe, a socket or a device, and not a file"
    done = resolved('"${file:a\\0b}"', tmp_path)
    assert [problem.message for problem in done.problems] == ["cannot read the secret file: no path has a NUL in it"]
    assert not done.files


def test_keys_and_numbers_are_left_alone() -> None:
    assert resolved("{'${env:ABSENT}': 1}").data == {"key": {"${env:ABSENT}": 1}}


# --- where they are shown: nowhere --------------------------------------------------------------------------------


@frozen
class Options:
    """Options with a secret in them."""

    key: str = option(help="A key.")
    nested: dict[str, str] = option(factory=dict, help="More.")
    number: int = option(1, help="A number.")
    choice: str | None = option(None, help="A choice.")


def test_a_value_with_a_secret_is_a_string_that_does_not_show_itself() -> None:
    text = "{key: 'Bearer ${env:NAME}', nested: {x: '$ENV[NAME]'}, choice: '${env:NAME}'}"
    document = parse_document(f"key: {text}\n", "f.yaml")
    done = resolve_secrets(document, Path("."), ENVIRONMENT)
    options, problems = structure(Options, Located(document, ("key",), done.data["key"]))
    assert not problems
    assert options is not None
    assert options.key == "Bearer value"
    assert repr(options) == "Options(key='***', nested={'x': '***'}, number=1, choice='***')"
    assert f"{options}" == repr(options)


@pytest.mark.parametrize("field", ["number", "choice"])
def test_a_problem_with_a_secret_value_does_not_show_it(field: str) -> None:
    document = parse_document("key: k\nnumber: '${env:NAME}'\nchoice: ['${env:NAME}']\n", "f.yaml")
    done = resolve_secrets(document, Path("."), ENVIRONMENT)
    _, problems = structure(Options, Located(document, (), done.data))
    assert field in {problem.path for problem in problems}
    assert "value" not in " ".join(map(str, problems))


def test_the_redactor_masks_every_secret_the_longest_first() -> None:
    redact = Redactor.of(["abc", "abcdef", "x", "", "ünï"])
    assert redact("abcdef abc x ünï ABC") == "*** *** x *** ABC"
    shown = redact.data({"abc": ["abcdef", 1, None, {"k": Secret("ab")}], "n": 1.5, "t": ("abc",)})
    assert shown == {"abc": [MASK, 1, None, {"k": MASK}], "n": 1.5, "t": [MASK]}
    assert "abcdef" not in repr(redact)


@given(st.text("abc* ", min_size=3, max_size=5), st.text("abc* "), st.text("abc* "))
def test_no_text_around_a_secret_lets_it_through(secret: str, before: str, after: str) -> None:
    kept = Redactor.of([secret])(before + secret + after).split(MASK)
    assert len(kept) > 1
    assert "*" in secret or not any(secret in part for part in kept)


@pytest.mark.parametrize(
    "write",
    [
        json.dumps,
        partial(json.dumps, ensure_ascii=False),
        repr,
        quote,
        quote_plus,
        partial(quote, safe=""),
        partial(quote, safe="!#$%&'()*+,/:;=?@[]~"),
        lambda text: repr(text.encode())[1:],
        lambda text: orjson.dumps(text).decode(),
    ],
)
def test_a_secret_is_masked_however_it_is_written(write: Callable[[str], str]) -> None:
    secret = "p\"a's/s\\ 100% ünï&="
    assert MASK in Redactor.of([secret])(f"told {write(secret)} to nobody")
    assert Redactor.of([secret])(write(secret)).strip("\"'") == MASK


def test_the_password_of_a_secret_url_is_a_secret() -> None:
    redact = Redactor.of(["postgresql://ada:l%40velace@db.test/crm"])
    assert (
        redact("no login for ada with l@velace or l%40velace at db.test")
        == "no login for ada with *** or *** at db.test"
    )


def test_a_whole_configuration_knows_its_secrets_and_shows_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "secret").write_text("from-a-file\n")
    write_files(
        tmp_path,
        {
            "config.yaml": "a: {sources: {default: {x: '${env:NAME}'}}}",
            "database.yaml": "database: {sources: {default: {x: '${file:secret}'}}}",
            "integrations/b.yaml": "b: {sources: {default: {x: '${env:ABSENT:-fallback}'}}}",
            "domains/d.yaml": "endpoints: {}",
            "domains/d/database.yaml": "c: {sources: {default: {x: '$ENV[TOKEN]'}}}",
        },
    )
    caplog.set_level(logging.DEBUG)
    configuration = load_configuration(tmp_path, ENVIRONMENT)
    assert configuration.redactor("value from-a-file tok$$en fallback") == "*** *** *** fallback"
    assert [path.name for path in configuration.secret_files] == ["secret"]
    shown = repr(configuration) + caplog.text
    assert "from-a-file" not in shown
    assert "tok$$en" not in shown


def test_one_of_a_few_words_may_come_from_the_environment(tmp_path: Path) -> None:
    write_files(tmp_path, {"config.yaml": "logging: {level: '${env:ABSENT:-warning}', format: '${env:FORMAT}'}"})
    configuration = load_configuration(tmp_path, {"FORMAT": "json"})
    assert configuration.problems == ()
    logging_options = configuration.app.logging
    assert (logging_options.level, logging_options.format) == ("warning", "json")


@pytest.mark.parametrize(("written", "named"), [("${env:NAME}", "${...}"), ("$ENV[NAME]", "$ENV[...]")])
def test_a_domain_file_holds_no_secrets_and_says_where_they_belong(written: str, named: str) -> None:
    domain = f"endpoints: {{e: {{response_mapping: '{written}'}}}}"
    (problem,) = check_problems({"domains/d.yaml": domain})
    assert problem.code == "ORC501"
    assert problem.hint == f"'{named}' is read in config.yaml, database.yaml and integrations only"


@pytest.mark.parametrize("written", ["${env:NOT_THERE_AT_ALL}", "${file:/not/there}", "${vault:url}"])
def test_what_is_wrong_with_a_placeholder_is_not_told_of_its_value_too(written: str) -> None:
    (problem,) = check_problems({"config.yaml": f"cache: {{url: '{written}'}}"}, offline=True)
    assert problem.code in ("ORC301", "ORC302", "ORC303")
    assert problem.path == "cache.url"
