"""The ``/docs`` page: Swagger UI and the files it needs, all from this package, so that it works offline."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from attrs import frozen

_FILES = {
    "docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "swagger-ui.css": ("swagger-ui/swagger-ui.css", "text/css; charset=utf-8"),
    "swagger-ui-bundle.js": ("swagger-ui/swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
    "swagger-ui-bundle.js.LICENSE.txt": (
        "swagger-ui/swagger-ui-bundle.js.LICENSE.txt",
        "text/plain; charset=utf-8",
    ),
    "favicon-32x32.png": ("swagger-ui/favicon-32x32.png", "image/png"),
}

# Relative, so that the page also works behind a proxy that puts a prefix before every path.
_PAGES = {"/docs": ("docs", "openapi.json"), "/docs/": (".", "../openapi.json")}

# Swagger UI sets styles on elements by script, which no policy forbids; its pictures are data: URLs in the style sheet.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@frozen
class Asset:
    """A file of the page as it is answered. ``headers`` has an ``ETag`` and everything else but the content type."""

    body: bytes
    content_type: str
    headers: Mapping[str, str]


def docs_asset(path: str) -> Asset | None:
    """Return what is served at a path, such as ``/docs`` or ``/docs/swagger-ui.css``, or None.

    The files are read when the first of them is asked for, and kept.
    """
    return _assets().get(path)


@cache
def _assets() -> Mapping[str, Asset]:
    static = files("orchestrator_core.http") / "static"
    assets = {
        f"/docs/{name}": _asset((static / file).read_bytes(), content_type, "public, max-age=31536000, immutable")
        for name, (file, content_type) in _FILES.items()
    }
    # The files can be cached for ever, because the page names them by their content.
    digest = _digest(b"".join(asset.body for asset in assets.values()))
    template = (static / "index.html").read_text(encoding="utf-8")
    for path, (folder, document) in _PAGES.items():
        page = template.replace("{assets}", folder).replace("{openapi}", document).replace("{digest}", digest)
        assets[path] = _asset(page.encode(), "text/html; charset=utf-8", "no-cache")
    return assets


def _asset(body: bytes, content_type: str, cache_control: str) -> Asset:
    headers = {
        "Cache-Control": cache_control,
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "ETag": f'"{_digest(body)}"',
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return Asset(body, content_type, headers)


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:16]
