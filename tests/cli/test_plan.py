"""`orchestrator plan`: the whole drawing in each of its forms."""

from __future__ import annotations

import json

import pytest

from .conftest import Invoke, Write

CREDIT = {
    "config/integrations/store.yaml": """
        store:
          sources:
            default: {url: "store://a"}
            reports: {url: "store://down", operations: {latest: {query: "latest report"}}}
          operations:
            get_customer: {query: "customer by id", params: [id]}
        """,
    "config/domains/credit.yaml": """
        endpoints:
          risk:
            description: Credit risk of a customer.
            timeout: 2s
            data_sources:
              - {name: customer, type: store, operation: get_customer, params: {id: "$request.path_params.id"}}
              - {name: report, type: store, source_id: reports, operation: latest, default: {level: 1}, timeout: 500ms}
              - name: limits
                type: direct
                condition: '$customer.score > 600 && $request.query_params.limits == "yes"'
                params: {max: "$customer.score * 10", nested: {a: "$customer.id", "b<c>": [1, "x"]}}
              - name: risk
                type: direct
                params: {score: "$customer.score", level: "$report.level"}
                transform: [rename: {score: points}]
              - {name: log, type: direct, depends_on: [risk]}
            response_mapping:
              risk: "$risk"
              limit: "$limits.max ?? 0"
          empty:
            response_mapping: nothing
          all:
            methods: [GET]
            path: "/{a}/b"
            data_sources:
              - {name: one, type: direct, params: {a: "$request.path_params.a"}}
              - {name: two, type: direct, required: false}
        """,
}
PLUGINS = ("--plugins-dir", "plugins")


def test_the_text_shows_what_waits_for_what(write: Write, orchestrator: Invoke) -> None:
    write(CREDIT)

    result = orchestrator("plan", "credit.risk", *PLUGINS)

    assert result.exit_code == 0
    assert result.output == (
        "credit.risk: Credit risk of a customer.\n"
        "GET POST /orchestrator/credit/risk[/{id}], within 2 s\n"
        "\n"
        "at the start, 2 steps at once\n"
        "├─ customer  store.default get_customer\n"
        "│              id = $request.path_params.id\n"
        "│              timeout          1 s, kept by the source itself\n"
        "│              retry            off: get_customer is not known to be idempotent\n"
        "│              circuit breaker  5 failures within 10 s open it, a probe after 5 s: default\n"
        '└─ report    store.reports latest, optional: {"level": 1} when it fails, within 500 ms\n'
        "               timeout          1 s, kept by the source itself\n"
        "               retry            off: latest is not known to be idempotent\n"
        "               circuit breaker  5 failures within 10 s open it, a probe after 5 s: default\n"
        "after customer, beside report, risk and log\n"
        "└─ limits    direct.default\n"
        "               only if $customer.score > 600 && $request.query_params.limits == 'yes'\n"
        "               max = $customer.score * 10\n"
        "               nested:\n"
        "                 a = $customer.id\n"
        "                 b<c> = [1, 'x']\n"
        "after customer and report, beside limits\n"
        "└─ risk      direct.default, transformed by rename\n"
        "               score = $customer.score\n"
        "               level = $report.level\n"
        "after risk, beside limits\n"
        "└─ log       direct.default\n"
        "answer\n"
        "   risk = $risk\n"
        "   limit = $limits.max ?? 0\n"
    )


def test_the_text_of_answers_without_a_mapping(write: Write, orchestrator: Invoke) -> None:
    write(CREDIT)

    assert orchestrator("plan", "credit.empty", *PLUGINS).output == (
        "credit.empty\nGET POST /orchestrator/credit/empty, within 10 s\n\nanswer\n   'nothing'\n"
    )
    assert orchestrator("plan", "credit.all", *PLUGINS).output == (
        "credit.all\n"
        "GET /orchestrator/credit/all/{a}/b, within 10 s\n"
        "\n"
        "at the start, 2 steps at once\n"
        "├─ one  direct.default\n"
        "│         a = $request.path_params.a\n"
        "└─ two  direct.default, optional: null when it fails\n"
        "answer\n"
        "   an object of the steps' results by name\n"
    )


def test_mermaid_labels_are_escaped(write: Write, orchestrator: Invoke) -> None:
    write(CREDIT)

    result = orchestrator("plan", "credit.risk", "--format", "mermaid", *PLUGINS)

    assert result.exit_code == 0
    assert result.output == (
        "flowchart TD\n"
        '    request(["GET POST /orchestrator/credit/risk[/{id}]"])\n'
        '    s0["customer<br/>store.default get_customer"]\n'
        '    s1["report<br/>store.reports latest<br/>optional: {#quot;level#quot;: 1} when it fails'
        '<br/>within 500 ms"]\n'
        '    s2{{"limits<br/>direct.default<br/>only if $customer.score #gt; 600 #amp;#amp; '
        "$request.query_params.limits == 'yes'\"}}\n"
        '    s3["risk<br/>direct.default<br/>transformed by rename"]\n'
        '    s4["log<br/>direct.default"]\n'
        '    answer(["answer"])\n'
        "    request --> s0\n"
        "    request --> s1\n"
        "    request --> s2\n"
        "    s0 --> s2\n"
        "    s0 --> s3\n"
        "    s1 --> s3\n"
        "    s3 --> s4\n"
        "    s2 --> answer\n"
        "    s3 --> answer\n"
        "    classDef unsure stroke-dasharray: 5 5\n"
        "    class s1,s2 unsure\n"
    )


def test_json_has_the_graph(write: Write, orchestrator: Invoke) -> None:
    write(CREDIT)

    document = json.loads(orchestrator("plan", "credit.all", "--format", "json", *PLUGINS).output)

    common = {"type": "direct", "source": "direct.default", "operation": "", "condition": None, "for_each": None}
    off = {"options": None, "why": "a direct step calls nothing", "at": []}
    policies = dict.fromkeys(("timeout", "retry", "circuit_breaker", "concurrency", "cache"), off)
    place = {
        "max_concurrency": None,
        "timeout_seconds": None,
        "waits_for": [],
        "file": "domains/credit.yaml",
        "policies": policies,
    }
    assert document == {
        "domain": "credit",
        "endpoint": "all",
        "description": "",
        "methods": ["GET"],
        "path": "/orchestrator/credit/all/{a}/b",
        "path_params": ["a"],
        "timeout_seconds": 10.0,
        "steps": [
            {
                **common,
                **place,
                "name": "one",
                "params": {"a": "$request.path_params.a"},
                "optional": False,
                "beside": ["two"],
                "line": 26,
            },
            {**common, **place, "name": "two", "params": {}, "optional": True, "beside": ["one"], "line": 27},
        ],
        "answer": {"expression": None, "steps": ["one", "two"]},
        "cache": None,
    }


POLICIES = {
    "config/config.yaml": """
        policies: {circuit_breaker: {failures: 10}}
        """,
    "config/integrations/store.yaml": """
        store:
          sources:
            default:
              url: "store://a"
              retry: {non_idempotent: true}
              concurrency: {max: 5}
              cache: {ttl: 30s, key: id, stale_if_error: 2h}
            reports:
              url: "store://a"
              circuit_breaker: false
              operations: {latest: {query: "latest report"}}
          operations:
            get_customer: {query: "customer by id", params: [id]}
        """,
    "config/domains/credit.yaml": """
        endpoints:
          risk:
            cache: {ttl: 5s, stale_while_revalidate: 1s}
            data_sources:
              - name: customer
                type: store
                operation: get_customer
                params: {id: "$request.path_params.id"}
                retry: {attempts: 5}
                cache: false
              - {name: report, type: store, source_id: reports, operation: latest}
              - name: keyed
                type: store
                operation: get_customer
                params: {id: "$request.headers.id"}
                cache: {ttl: 1, key: "$customer.score"}
                circuit_breaker: true
                concurrency: false
        """,
}


def test_policies_are_shown_with_the_reason_for_each(write: Write, orchestrator: Invoke) -> None:
    write(POLICIES)

    store, domain = "config/integrations/store.yaml", "config/domains/credit.yaml"
    kept = "timeout          1 s, kept by the source itself\n"
    retry = "attempts, pauses of at most 50 ms to 1 s, whatever it does"
    assert orchestrator("plan", "credit.risk", *PLUGINS).output == (
        "credit.risk\n"
        "GET POST /orchestrator/credit/risk[/{id}], within 10 s\n"
        "\n"
        "at the start, 2 steps at once\n"
        "├─ customer  store.default get_customer\n"
        "│              id = $request.path_params.id\n"
        f"│              {kept}"
        f"│              retry            5 {retry}: {store}:5, then {domain}:9\n"
        "│              circuit breaker  10 failures within 10 s open it, a probe after 5 s: config/config.yaml:1\n"
        f"│              concurrency      5 calls at once, 100 may wait: {store}:6\n"
        f"│              cache            off: {domain}:10\n"
        "└─ report    store.reports latest\n"
        f"               {kept}"
        "               retry            off: latest is not known to be idempotent\n"
        f"               circuit breaker  off: {store}:10\n"
        "after customer, beside report\n"
        "└─ keyed     store.default get_customer\n"
        "               id = $request.headers.id\n"
        f"               {kept}"
        f"               retry            3 {retry}: {store}:5\n"
        "               circuit breaker  10 failures within 10 s open it, a probe after 5 s: config/config.yaml:1, "
        f"then {domain}:17\n"
        f"               concurrency      off: {domain}:18\n"
        f"               cache            for 1 s, by $customer.score, 2 h longer when that fails: {store}:7, "
        f"then {domain}:16\n"
        "answer\n"
        "   an object of the steps' results by name\n"
        "   cache  for 5 s, by path and query parameters, body and the header id, 1 s longer while it is renewed: "
        f"{domain}:3\n"
    )


@pytest.mark.parametrize(
    ("policy", "source", "step", "shown"),
    [
        ("retry", "{attempts: 1}", "{non_idempotent: true}", "1 attempt: {source}, then {step}"),
        (
            "retry",
            "{backoff: 2s}",
            "{non_idempotent: true}",
            "3 attempts, pauses of at most 2 s, whatever it does: {source}, then {step}",
        ),
        ("circuit_breaker", "false", "true", "5 failures within 10 s open it, a probe after 5 s: {step}"),
        (
            "circuit_breaker",
            "{failures: 1}",
            "{reset: 1s}",
            "1 failure opens it, a probe after 1 s: {source}, then {step}",
        ),
        ("concurrency", "{max: 9}", "{max: 1, queue: 0}", "1 call at once, 0 may wait: {source}, then {step}"),
    ],
)
def test_a_policy_is_shown_as_it_is_in_force(
    write: Write, orchestrator: Invoke, policy: str, source: str, step: str, shown: str
) -> None:
    write(
        {
            "config/integrations/store.yaml": f"""
                store:
                  sources: {{default: {{url: "store://a", {policy}: {source}}}}}
                  operations: {{latest: {{query: "latest report"}}}}
                """,
            "config/domains/credit.yaml": f"""
                endpoints:
                  risk:
                    data_sources:
                      - {{name: report, type: store, operation: latest, {policy}: {step}}}
                """,
        }
    )
    name = policy.replace("_", " ")
    lines = [line.strip() for line in orchestrator("plan", "credit.risk", *PLUGINS).output.splitlines()]
    (told,) = [line.removeprefix(name).strip() for line in lines if line.startswith(name)]
    assert told == shown.format(source="config/integrations/store.yaml:2", step="config/domains/credit.yaml:4")


def test_json_has_the_policies_with_their_places(write: Write, orchestrator: Invoke) -> None:
    write(POLICIES)

    document = json.loads(orchestrator("plan", "credit.risk", "--format", "json", *PLUGINS).output)

    assert document["steps"][0]["policies"] == {
        "timeout": {"options": None, "why": "1 s, kept by the source itself", "at": []},
        "retry": {
            "options": {"attempts": 5, "backoff": 0.05, "max_backoff": 1.0, "non_idempotent": True},
            "why": "configured",
            "at": ["integrations/store.yaml:5", "domains/credit.yaml:9"],
        },
        "circuit_breaker": {
            "options": {"failures": 10, "window": 10.0, "reset": 5.0},
            "why": "configured",
            "at": ["config.yaml:1"],
        },
        "concurrency": {
            "options": {"max": 5, "queue": 100},
            "why": "configured",
            "at": ["integrations/store.yaml:6"],
        },
        "cache": {"options": None, "why": "off", "at": ["domains/credit.yaml:10"]},
    }
    assert document["cache"] == {
        "ttl": 5.0,
        "key": None,
        "stale_while_revalidate": 1.0,
        "stale_if_error": 0.0,
        "max_entries": 10000,
        "headers": ["id"],
    }


def test_the_code_shows_which_calls_have_policies(write: Write, orchestrator: Invoke) -> None:
    write(POLICIES)

    source = orchestrator("plan", "credit.risk", "--format", "python", *PLUGINS).output

    assert [line.strip() for line in source.splitlines() if " = await call_" in line] == [
        "report = await call_report()",
        "customer = await call_customer(run, 0, customer_id_0)",
        "keyed = await call_keyed(run, 2, keyed_id_0, keyed_cache_key_1)",
    ]


def test_python_is_the_code_that_runs(write: Write, orchestrator: Invoke) -> None:
    write(CREDIT)

    source = orchestrator("plan", "credit.risk", "--format", "python", *PLUGINS).output

    assert "async def credit__risk(request, run):\n" in source
    compile(source, "plan", "exec")


def test_an_unknown_endpoint_names_the_one_that_was_meant(write: Write, orchestrator: Invoke) -> None:
    write(CREDIT)

    result = orchestrator("plan", "credit.rsk", *PLUGINS)

    assert result.exit_code == 1
    assert result.output == "Error: there is no endpoint 'credit.rsk' in config: did you mean 'credit.risk'?\n"


def test_an_endpoint_with_problems_shows_them_and_another_is_still_drawn(write: Write, orchestrator: Invoke) -> None:
    write(
        {
            "config/domains/shop.yaml": """
                endpoints:
                  good: {response_mapping: 1}
                  bad: {response_mapping: "$thing"}
                """
        }
    )

    bad, good = orchestrator("plan", "shop.bad"), orchestrator("plan", "shop.good")

    assert bad.exit_code == 1
    assert bad.stdout == ""
    assert bad.stderr == (
        "config/domains/shop.yaml:3:28: ORC502 there is no step 'thing'\n"
        '    3 |   bad: {response_mapping: "$thing"}\n'
        "      |                            ^^^^^^\n"
        "      = expected one of: execution, request\n"
        "1 problem in 1 file\n"
    )
    assert good.exit_code == 0
    assert good.stdout == "shop.good\nGET POST /orchestrator/shop/good, within 10 s\n\nanswer\n   1\n"
    assert good.stderr == "note: the configuration has 1 problem elsewhere, see: orchestrator check\n"


def test_an_endpoint_whose_source_is_broken_is_neither_drawn_nor_run(write: Write, orchestrator: Invoke) -> None:
    write(
        {
            "config/database.yaml": "store: {sources: {default: {url: 1}}, operations: {get: {query: one}}}\n",
            "config/domains/shop.yaml": """
                endpoints:
                  bad: {data_sources: [{name: score, type: store, operation: get}]}
                """,
        }
    )

    for command in ("plan", "run"):
        result = orchestrator(command, "shop.bad", "--plugins-dir", "plugins")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == (
            "config/database.yaml:1:34: ORC202 expected a string, got an integer 1: put it in quotes\n"
            "    1 | store: {sources: {default: {url: 1}}, operations: {get: {query: one}}}\n"
            "      |                                  ^\n"
            "1 problem in 1 file\n"
        )


EACH = {
    "config/domains/shop.yaml": """
        endpoints:
          basket:
            methods: [POST]
            data_sources:
              - name: price
                type: direct
                for_each: "$request.body.items ?? []"
                max_concurrency: 3
                timeout: 250ms
                default: {price: 0}
                params: {sku: "$item.sku", place: "$index + 1", shop: "$request.body.shop"}
              - {name: total, type: direct, for_each: "$price", params: {of: "$item"}}
        """,
}
BASKET = """\
# shop.basket


def price_list(request, run):
    return (_v if (_v := _maybe(request.body, 'items')) is not None else [])


def price_params(request, run, item, index):
    return (_resolve(item, 'item', ('sku',)), _add(index, 1), _request_resolve(request, ('body', 'shop')))


def total_list(request, run, price):
    return _present(price, '$price')


def total_params(request, run, item, index):
    return (item,)


async def shop__basket(request, run):
    steps = run.steps

    # price: direct.default, for each of $request.body.items ?? []
    steps[0] = started = clock()
    try:
        try:
            price_each = (_v if (_v := _maybe(request.body, 'items')) is not None else [])
        except LOOKUP:
            price_each = price_list(request, run)
        each_price.check(run, price_each)
        try:
            price_shop_2 = request.body['shop']
            price_given = [(item['sku'], _add(index, 1), price_shop_2) for index, item in enumerate(price_each)]
        except Exception:
            price_given = each_price.values(price_params, request, run, price_each)
        price = await each_price.results(run, price_given, at_most=3, within=0.25)
    except BaseException as error:
        if ends_task(error):
            raise
        price = run.fallback(0, started, error, default_price)
    else:
        steps[0] = run.ended_with_items(0, started)

    # total: direct.default, for each of $price
    started = clock()
    if started > run.turns.until:
        started = await run.turns.rest()
    steps[1] = started
    try:
        try:
            total_each = price
        except LOOKUP:
            total_each = total_list(request, run, price)
        each_total.check(run, total_each)
        try:
            total_given = [(item,) for item in total_each]
        except Exception:
            total_given = each_total.values(total_params, request, run, total_each)
        total = await each_total.results(run, total_given, at_most=8)
    except BaseException as error:
        if ends_task(error):
            raise
        raise run.failed(1, started, error)
    steps[1] = (OK, started, clock(), '')

    response = {'price': price, 'total': total}
    return response
"""


def test_every_form_shows_what_a_step_runs_for(write: Write, orchestrator: Invoke) -> None:
    write(EACH)

    text = orchestrator("plan", "shop.basket")
    mermaid = orchestrator("plan", "shop.basket", "--format", "mermaid")
    document = json.loads(orchestrator("plan", "shop.basket", "--format", "json").output)
    code = orchestrator("plan", "shop.basket", "--format", "python")

    marks = 'for each of $request.body.items ?? [], optional: {"price": 0} when an item fails, within 250 ms'
    assert text.output == (
        "shop.basket\n"
        "POST /orchestrator/shop/basket, within 10 s\n"
        "\n"
        "at the start\n"
        f"└─ price  direct.default, {marks}\n"
        "            sku = $item.sku\n"
        "            place = $index + 1\n"
        "            shop = $request.body.shop\n"
        "after price\n"
        "└─ total  direct.default, for each of $price\n"
        "            of = $item\n"
        "answer\n"
        "   an object of the steps' results by name\n"
    )
    label = "price<br/>direct.default<br/>" + marks.replace(", ", "<br/>").replace('"', "#quot;")
    assert mermaid.output == (
        "flowchart TD\n"
        '    request(["POST /orchestrator/shop/basket"])\n'
        f'    s0["{label}"]\n'
        '    s1["total<br/>direct.default<br/>for each of $price"]\n'
        '    answer(["answer"])\n'
        "    request --> s0\n"
        "    s0 --> s1\n"
        "    s0 --> answer\n"
        "    s1 --> answer\n"
        "    classDef unsure stroke-dasharray: 5 5\n"
        "    class s0 unsure\n"
    )
    assert [(step["for_each"], step["max_concurrency"]) for step in document["steps"]] == [
        ("$request.body.items ?? []", 3),
        ("$price", 8),
    ]
    assert code.output == BASKET
