"""The one outbound HTTP client of the core, handed to plugins when they open.

HTTP/1.1 with keep-alive on httptools' parser; see ``docs/decisions/0002-outbound-http.md`` for why it is our own.

.. code-block:: python

    async with context.http.origin("https://partner.example/v1", HttpOptions(timeout_seconds=2)) as partner:
        predict = partner.prepare("POST", "/predict", headers={"Content-Type": "application/json"})
        answer = await predict(b'{"features": [1, 2]}')
        if answer.status == 200:
            result = answer.json()

In YAML the same options are a source's own, ``tls: {ca_file: partner-ca.pem}`` for example.
"""

from orchestrator_core.http_client.client import HttpClient, HttpOrigin, PreparedCall, RouteCall
from orchestrator_core.http_client.dial import AddressInfo, Resolve
from orchestrator_core.http_client.errors import HttpConnectError, HttpProtocolError, HttpTimeout, ResponseTooLarge
from orchestrator_core.http_client.options import EgressOptions, HttpOptions, TlsOptions
from orchestrator_core.http_client.pool import PoolStats
from orchestrator_core.http_client.request import check_headers
from orchestrator_core.http_client.response import Headers, HttpResponse
from orchestrator_core.http_client.tracing import TraceParent, current_trace, parse_traceparent, trace_lines

__all__ = [
    "AddressInfo",
    "EgressOptions",
    "Headers",
    "HttpClient",
    "HttpConnectError",
    "HttpOptions",
    "HttpOrigin",
    "HttpProtocolError",
    "HttpResponse",
    "HttpTimeout",
    "PoolStats",
    "PreparedCall",
    "Resolve",
    "ResponseTooLarge",
    "RouteCall",
    "TlsOptions",
    "TraceParent",
    "check_headers",
    "current_trace",
    "parse_traceparent",
    "trace_lines",
]
