"""What is asked of AWS: a login for the registry, and the digest of a tag. boto3 blocks: call from threads."""

from __future__ import annotations

import re
import threading
from base64 import b64decode
from collections.abc import Callable
from time import time
from typing import Any

from attrs import frozen

from orchestrator_core.plugin_api import SourceError, SourceUnavailable, did_you_mean
from orchestrator_model_ecr.options import EcrOptions, host_of

RENEW_BEFORE_SECONDS = 600
"""A login that ends within this time is not used for a pull that may take as long."""

_CONNECT_SECONDS, _READ_SECONDS, _ATTEMPTS = 3, 10, 4
_HURRY = (2, 3, 2)
"""Where an image is here already, its model does not wait long for AWS; nor does one that only looks."""

_TAGS = re.compile(r"<[^>]*>")
_LONGEST_SAID = 300

_WRONG_KEYS = {
    "UnrecognizedClientException",
    "InvalidSignatureException",
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
}
_EXPIRED = {"ExpiredTokenException", "ExpiredToken", "RequestExpired", "TokenRefreshRequired"}
_DENIED = {"AccessDeniedException", "AccessDenied", "UnauthorizedException", "OptInRequired"}
_THROTTLED = {
    "ThrottlingException",
    "Throttling",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "LimitExceededException",
}


@frozen(repr=False)
class Login:
    """A login for a registry. ``host`` is what image names begin with, ``expires`` a Unix time."""

    host: str
    username: str
    password: str
    expires: float


class Logins:
    """The logins that this process has; one is asked for once, however many models need it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str | None, ...], Login] = {}

    def get(self, account: tuple[str | None, ...], ask: Callable[[], Login], refused: Login | None = None) -> Login:
        """Return a login that is good for a while. ``refused`` is one that the registry did not take."""
        with self._lock:
            known = self._known.get(account)
            if known is not None and known is not refused and known.expires - time() > RENEW_BEFORE_SECONDS:
                return known
            try:
                self._known[account] = ask()
            except SourceUnavailable:
                if known is None or known is refused or known.expires <= time():
                    raise
            return self._known[account]


LOGINS = Logins()


class Aws:
    """ECR's API as the options say it is reached."""

    def __init__(self, options: EcrOptions) -> None:
        self._options = options

    def login(self, refused: Login | None = None, *, hurry: bool = False) -> Login:
        """Return a login, a new one if one was refused or ends soon."""
        options = self._options
        account = (options.region, options.registry_id, options.endpoint_url, options.profile)
        return LOGINS.get(account, lambda: self._ask_login(hurry=hurry), refused)

    def digest_of(self, tag: str, *, hurry: bool = False) -> str:
        """Return the digest that a tag stands for now."""
        answer = self._ask(
            lambda client: client.describe_images(imageIds=[{"imageTag": tag}], **self._repository()), hurry=hurry
        )
        return str(self._only(answer, "imageDetails")["imageDigest"])

    def _ask_login(self, *, hurry: bool) -> Login:
        ids = {"registryIds": [self._options.registry_id]} if self._options.registry_id else {}
        data = self._only(
            self._ask(lambda client: client.get_authorization_token(**ids), hurry=hurry), "authorizationData"
        )
        username, _, password = b64decode(data["authorizationToken"]).decode().partition(":")
        return Login(host_of(data["proxyEndpoint"]), username, password, data["expiresAt"].timestamp())

    def _only(self, answer: Any, field: str) -> Any:
        """Return the one entry of a field. What stands in ECR's place may answer 200, which the SDK takes for empty."""
        found = answer.get(field)
        if not found:
            raise SourceUnavailable(
                f"ECR: {self._reached} answered without {field}, as ECR never does: check endpoint_url, and what "
                "stands before AWS",
                started=False,
            )
        return found[0]

    def _repository(self) -> dict[str, str]:
        registry = {"registryId": self._options.registry_id} if self._options.registry_id else {}
        return {"repositoryName": self._options.repository, **registry}

    def _ask(self, question: Callable[[Any], Any], *, hurry: bool = False) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return question(self._client(hurry=hurry))
        except ClientError as error:
            raise self._refused(error) from error
        except BotoCoreError as error:
            raise self._failed(error) from error

    def _client(self, *, hurry: bool) -> Any:
        from boto3.session import Session  # takes a second
        from botocore.config import Config

        connect, read, attempts = _HURRY if hurry else (_CONNECT_SECONDS, _READ_SECONDS, _ATTEMPTS)
        config = Config(
            connect_timeout=connect, read_timeout=read, retries={"mode": "standard", "total_max_attempts": attempts}
        )
        session = Session(profile_name=self._options.profile, region_name=self._options.region)
        return session.client("ecr", endpoint_url=self._options.endpoint_url, config=config)

    # --- errors -------------------------------------------------------------------------------------------------------

    @property
    def _where(self) -> str:
        """Return what an error is about."""
        region = f" in {self._options.region}" if self._options.region else ""
        return (
            f"the registry of account {self._options.registry_id}{region}"
            if self._options.registry_id
            else (f"your registry{region}")
        )

    @property
    def _reached(self) -> str:
        return self._options.endpoint_url or "AWS"

    def _no_such_tag(self) -> SourceError:
        options = self._options
        wanted = options.digest or f"tag '{options.wanted_tag}'"
        return SourceError(
            f"ECR: the repository {options.repository} in {self._where} has no image with the {wanted}: push it, or "
            f"see what there is with aws ecr list-images --repository-name {options.repository}"
        )

    def _refused(self, error: Any) -> SourceError | SourceUnavailable:
        code = error.response.get("Error", {}).get("Code", "")
        said = _one_line(error.response.get("Error", {}).get("Message", "") or str(error))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        options = self._options
        if code == "RepositoryNotFoundException":
            return SourceError(
                f"ECR: {self._where} has no repository {options.repository}: create it, or check region and registry_id"
            )
        if code == "ImageNotFoundException":
            return self._no_such_tag()
        if code in _EXPIRED:
            return SourceUnavailable(
                f"ECR: the AWS credentials have expired: renew them, for instance with aws sso login ({said})",
                started=False,
            )
        if code in _WRONG_KEYS:
            return SourceError(
                f"ECR: AWS does not accept these credentials: check the access key and its secret ({said})"
            )
        if code in _DENIED or status == 403:
            return SourceError(
                f"ECR: access denied to the repository {options.repository}: allow ecr:GetAuthorizationToken, "
                f"ecr:DescribeImages, ecr:BatchGetImage and ecr:GetDownloadUrlForLayer ({said})"
            )
        if code in _THROTTLED or status == 429:
            return SourceUnavailable(f"ECR: AWS limits the rate of requests: it is tried again ({said})", started=False)
        if status >= 500:
            doubt = self._unknown_region()
            return SourceUnavailable(
                f"ECR: AWS answered {status}: it is tried again{f'; {doubt}' if doubt else ''} ({said})", started=False
            )
        return SourceError(f"ECR: AWS refuses the request: {code}: {said}")

    def _failed(self, error: Any) -> SourceError | SourceUnavailable:
        from botocore import exceptions

        if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
            return SourceError(
                "ECR: there are no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile, "
                f"or run where a role is attached ({error})"
            )
        if isinstance(error, exceptions.ProfileNotFound):
            return SourceError(f"ECR: the AWS configuration has no profile '{self._options.profile}': check profile")
        if isinstance(
            error,
            exceptions.SSOError | exceptions.TokenRetrievalError | exceptions.CredentialRetrievalError,
        ):
            return SourceUnavailable(
                f"ECR: the AWS credentials have expired or cannot be had: renew them, for instance with aws sso login "
                f"({error})",
                started=False,
            )
        if isinstance(error, exceptions.NoRegionError):
            return SourceError("ECR: no AWS region is known: write region, or set AWS_DEFAULT_REGION")
        if isinstance(error, exceptions.InvalidRegionError):
            return SourceError(f"ECR: '{self._options.region}' is no AWS region: check region")
        return SourceUnavailable(
            f"ECR: {self._reached} cannot be reached{self._about_region()}: {error}", started=False
        )

    def _about_region(self) -> str:
        """Return a doubt about the region, whose name is a part of the address."""
        doubt = "" if self._options.endpoint_url else self._unknown_region()
        return f": {doubt or 'check the network'}"

    def _unknown_region(self) -> str:
        """Return that the region is none that is known, if it is so."""
        region = self._options.region
        if not region:
            return ""
        from boto3.session import Session

        known = Session().get_available_regions("ecr")
        if region in known:
            return ""
        return f"'{region}' is no region that is known: {did_you_mean(region, known) or 'check region'}"


def _one_line(said: str) -> str:
    """Return what was said in one line: what stands before AWS, or in its place, may answer with a page."""
    line = " ".join(_TAGS.sub(" ", said).split())
    return line if len(line) <= _LONGEST_SAID else f"{line[:_LONGEST_SAID]}…"
