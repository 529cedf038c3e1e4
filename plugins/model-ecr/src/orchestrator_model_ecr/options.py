"""What stands in YAML for a model in an image of an ECR registry."""

from __future__ import annotations

import re
from typing import Any

from attrs import frozen
from orchestrator_model_docker.options import ContainerOptions, own_first

from orchestrator_core.plugin_api import OptionError, option

_REPOSITORY = re.compile(r"[a-z0-9]+(?:[._/-][a-z0-9]+)*\Z")
_TAG = re.compile(r"[\w][\w.-]{0,127}\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_ACCOUNT = re.compile(r"[0-9]{12}\Z")
_REGION_OF_HOST = re.compile(r"\.dkr\.ecr(?:-fips)?\.([a-z0-9-]+)\.")


def _repository(_: Any, __: Any, name: str) -> None:
    if not _REPOSITORY.match(name):
        raise ValueError(
            f"'{name}' is no name of a repository: write it without registry and tag, such as models/credit"
        )


def _tag(_: Any, __: Any, tag: str | None) -> None:
    if tag is not None and not _TAG.match(tag):
        raise ValueError(f"'{tag}' is no tag")


def _digest(_: Any, __: Any, digest: str | None) -> None:
    if digest is not None and not _DIGEST.match(digest):
        raise ValueError(f"'{digest}' is no digest: write sha256: and 64 hexadecimal digits")


def _account(_: Any, __: Any, account: str | None) -> None:
    if account is not None and not _ACCOUNT.match(account):
        raise ValueError(f"expected the 12 digits of an AWS account, got '{account}'")


def _http_url(_: Any, __: Any, url: str | None) -> None:
    if url is not None and not url.startswith(("http://", "https://")):
        raise ValueError("expected a URL that starts with http:// or https://")


@frozen(kw_only=True, field_transformer=own_first)
class EcrOptions(ContainerOptions):
    """A model in a container, made from an image of AWS's registry ECR. Everything of the type ``docker`` holds too."""

    repository: str = option(help="The repository, such as `models/credit`.", validator=_repository)
    tag: str | None = option(
        None, help="The tag; it is resolved to a digest when the model is loaded. Default: `latest`.", validator=_tag
    )
    digest: str | None = option(None, help="The image itself, `sha256:…`, instead of a tag.", validator=_digest)
    region: str | None = option(None, help="The AWS region. Default: what the AWS tools use.")
    registry_id: str | None = option(
        None,
        help='The AWS account of the registry, in quotes: `"123456789012"`. Default: your own.',
        validator=_account,
    )
    registry: str | None = option(None, help="The registry's host, if it is not the one that AWS names.")
    endpoint_url: str | None = option(None, help="Where the ECR API is, if not at AWS.", validator=_http_url)
    profile: str | None = option(None, help="A profile of the AWS configuration. Default: what the AWS tools use.")

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.tag is not None and self.digest is not None:
            raise OptionError("digest", "give either tag or digest: a digest already says which image it is")
        host = _REGION_OF_HOST.search(self.registry or "")
        if host and self.region and host[1] != self.region:
            raise OptionError("region", f"the registry is in the region {host[1]}, not {self.region}")

    @property
    def registry_host(self) -> str | None:
        """Return the registry as images name it, None where AWS has to be asked."""
        return host_of(self.registry) if self.registry else None

    @property
    def wanted_tag(self) -> str | None:
        return None if self.digest else self.tag or "latest"


def host_of(url: str) -> str:
    """Return host and port of an address that may begin with a scheme, which image names do not have."""
    return url.partition("://")[2].rstrip("/") if "://" in url else url.rstrip("/")
