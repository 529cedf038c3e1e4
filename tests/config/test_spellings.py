"""In how many ways a secret can be written, and that it is masked in each of them."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import re
from collections.abc import Callable
from functools import partial
from urllib.parse import quote, quote_plus, unquote, urlencode

import orjson
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from yarl import URL

from orchestrator_core.config.secrets import MASK, Redactor

SECRET = "p\"a's/s\\ 100% ünï&=+<😀>\n~q"


def lower_percent(text: str) -> str:
    return re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), quote(text, safe=""))


def every_byte(text: str) -> str:
    return "".join(char if char.isalnum() and char.isascii() else quote(char, safe="") for char in text)


def as_csv(text: str) -> str:
    stream = io.StringIO()
    csv.writer(stream).writerow([text])
    return stream.getvalue().strip().strip('"')


@pytest.mark.parametrize(
    "write",
    [
        str,
        json.dumps,
        partial(json.dumps, ensure_ascii=False),
        lambda text: json.dumps({"said": json.dumps(text)}),
        lambda text: json.dumps(text).replace("/", "\\/"),
        repr,
        lambda text: repr([repr(text)]),
        lambda text: repr(text.encode()),
        ascii,
        quote,
        quote_plus,
        partial(quote, safe=""),
        lower_percent,
        lambda text: quote(lower_percent(text)),
        every_byte,
        lambda text: urlencode({"key": text}),
        lambda text: str(URL("http://h/").with_query(key=text)),
        lambda text: str(URL("http://h/") / text),
        html.escape,
        lambda text: "".join(f"&#{ord(char)};" if char in "<>&\"'/=+" else char for char in text),
        lambda text: text.encode().decode("latin-1"),
        lambda text: " ".join(text.split()),
        lambda text: text.replace("'", "''"),
        as_csv,
        lambda text: yaml.safe_dump([text], width=10_000),
        lambda text: orjson.dumps(text).decode(),
    ],
)
def test_a_secret_is_masked_however_it_is_escaped(write: Callable[[str], str]) -> None:
    told = Redactor.of([SECRET])(f"told {write(SECRET)} to nobody")
    assert MASK in told
    assert "100" not in told


@pytest.mark.parametrize("code", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("before", ["", "a", "ada", "ada:", "ada:ä"])
@pytest.mark.parametrize("secret", ["s3cret", "tökén?>~", "a?b>c~d?e>", "x" * 70])
def test_a_secret_is_masked_in_base64(code: Callable[[bytes], bytes], before: str, secret: str) -> None:
    redact = Redactor.of([secret])
    for after in ("", "!", ":more"):
        encoded = code(f"{before}{secret}{after}".encode()).decode()
        for written in (encoded, quote(encoded, safe=""), lower_percent(encoded)):
            first, *more = unquote(redact(f"Basic {written}")).removeprefix("Basic ").split(MASK)
            assert len(first) <= len(base64.b64encode(before.encode()).rstrip(b"=")) + 1
            assert [len(rest.rstrip("=")) <= len(after) * 4 / 3 + 2 for rest in more] == [True]


def test_what_only_resembles_a_secret_is_left_alone() -> None:
    redact = Redactor.of(["s3cret-token"])
    text = "S3CRET-token, s3cret_token, 100 %, \\n, c2VjcmV0 and cyNjcmV0LXRva2Vu"
    assert redact(text) == text


@pytest.mark.parametrize(
    ("secret", "said", "masked"),  # None: as it is said
    [
        ("https://ghp_4711@git.test/a", "no access for ghp_4711", "no access for ***"),
        ("https://sk_live_4711:@pay.test", "no such key: sk_live_4711", "no such key: ***"),
        ("https://tok4711:x-oauth-basic@git.test", "bad token tok4711", "bad token ***"),
        ("postgresql://postgres@db.test/crm", "postgres: postgresql", "postgres: postgresql"),
        ("postgresql://ada:p@ss@db.test/crm", "for ada with p@ss", "for ada with ***"),
        ("host=db user=ada password=velace", "no velace for ada", "no *** for ada"),
        ("postgresql:///crm?user=ada&password=l%40velace", "no l@velace for ada", "no *** for ada"),
        ("redis://h/0?api_key=4711abc", "api_key=4711abc", "api_key=***"),
        ("https://Hooks.test/T0/4711/", "GET https://hooks.test/T0/4711: answered 500", "GET ***: answered 500"),
        ("https://ada:velace@hooks.test/T0/4711", "GET https://hooks.test/T0/4711?…", "GET ***?…"),
        ("https://ada:velace@hooks.test/", "GET https://hooks.test/", "GET https://hooks.test/"),
        ("https://hooks.test/T0/0123456789abcdef", "no route /T0/0123456789abcdef", "no route /T0/***"),
        ("postgresql://ada:velace@db.test/a_long_name_of_a_database", "a_long_name_of_a_database", None),
        ("Acme-Corp", "cannot connect to acme-corp.api.test", "cannot connect to ***.api.test"),
        ("Bearer tok4711", "the token tok4711 has expired", "the token *** has expired"),
        ("Token  tok4711", "Bearer tok4711", "Bearer ***"),
        ("Basic YWRhOnZlbGFjZQ==", "ada cannot log in with velace", "ada cannot log in with ***"),
        ("Basic YWRhOnZlbGFjZQ==", "YWRhOnZlbGFjZQ==", "***"),
        ("basic training", "no training for ada:velace", "no *** for ada:velace"),
        (" padded ", "sent 'padded'", "sent '***'"),
        ("https://[::1", "https://[::1", "***"),
    ],
)
def test_what_is_secret_in_a_secret_is_masked_alone_too(secret: str, said: str, masked: str | None) -> None:
    assert Redactor.of([secret])(said) == (said if masked is None else masked)


ANY = st.text(st.characters(codec="utf-8"))


@settings(deadline=None)
@given(ANY, ANY, st.sampled_from([str, json.dumps, repr, ascii, html.escape, quote, quote_plus, lower_percent]))
@example("abc\\", "", json.dumps)
@example("\\n", "", repr)
def test_any_secret_is_found(before: str, after: str, write: Callable[[str], str]) -> None:
    secret = f"{before}a4b{after}"
    assert MASK in Redactor.of([secret])(f"<{write(secret)}>")


def test_what_is_masked_is_all_of_the_secret_and_nothing_else() -> None:
    redact = Redactor.of(['"ab c', "d/e\\f"])
    text = json.dumps({"a": 'x"ab cy', "b": "d/e\\fg", "é": "\n%41'"})
    assert redact(text) == '{"a": "x***y", "b": "***g", "\\u00e9": "\\n%41\'"}'
    assert redact("%22ab+c%22ab%20cd%2Fe%5Cf") == 3 * MASK


def test_no_secret_takes_long_to_look_for() -> None:
    secrets = ["\\ " * 300, "%" * 500, " \\" * 300, "é" * 300, "'" * 500, "+ " * 300, "&amp;" * 200, "\n" * 500]
    redact = Redactor.of(secrets)
    for secret in secrets:
        for text in (secret[:-1] * 3, secret[1:] + "x", quote(secret[1:]) + "!", repr(secret[1:]) * 2):
            redact(text)
        assert MASK in redact(secret)
