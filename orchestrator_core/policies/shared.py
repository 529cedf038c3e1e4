"""The cache outside this process: Redis, by way of cashews.

It is a help and never a need. A call of it ends within its timeout, and after failures it is not asked for a while: a
request goes on to the source then, as if nothing had been kept.

What is kept there is JSON, never a pickle, so that who can write to Redis cannot have code run here; with a secret it
is signed, so that they cannot have a result taken for ours either.
"""

from __future__ import annotations

import asyncio
import hmac
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from hashlib import blake2b
from time import monotonic
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import orjson
import structlog

from orchestrator_core.plugin_api import Duration
from orchestrator_core.policies.breaker import Breaker
from orchestrator_core.policies.keys import document, document_of
from orchestrator_core.policies.options import BreakerOptions, SharedCacheOptions
from orchestrator_core.time_limits import TimeLimit

__all__ = ["MissingExtra", "SharedCache", "open_shared_cache"]

log = structlog.get_logger("orchestrator.policies")

Kept: TypeAlias = tuple[float, Any]
"""When a result was made, as a Unix time in seconds, and the result."""

Fits: TypeAlias = Callable[[Any], bool]
"""Tells whether a value has the shape of the results that are kept."""

_OUTAGE = BreakerOptions(failures=3, window=Duration(10), reset=Duration(1))
_SIGNATURE_BYTES = 32
_QUOTED = " of pipeline caused error: "
"""What stands in a message of redis after the command, which has a result in it."""
_LONGEST_SECONDS = 10 * 365 * 86_400.0
"""How long an entry is kept at most: Redis takes an expiry that it cannot count for an error."""


class MissingExtra(Exception):
    """The libraries for Redis are not installed."""


class SharedCache:
    """Results kept in Redis. :func:`open_shared_cache` makes one."""

    def __init__(
        self, backend: Any, options: SharedCacheOptions, clock: Callable[[], float], refusal: type[Exception]
    ) -> None:
        self.where = _without_credentials(options.url)
        self._backend = backend
        self._refusal = refusal
        self._limit = TimeLimit(options.timeout)
        self._prefix = options.prefix
        self._secret = options.secret.encode()
        self._breaker = Breaker(_OUTAGE, clock)
        self._is_out = False
        self._told_of_foreign = False
        self._takes_nothing = False

    async def trouble(self) -> str:
        """Return why Redis does not answer now; nothing if it does."""
        try:
            async with asyncio.timeout(self._limit.seconds):
                await self._backend.ping()
        except TimeoutError:
            return f"no answer within {self._limit.seconds:g} s"
        except Exception as error:
            return _reason(error)
        return ""

    async def get_many(
        self, name: str, keys: Sequence[Hashable], fits: Fits = lambda result: True
    ) -> Mapping[Hashable, Kept] | None:
        """Return what there is of these keys; None when it could not be asked.

        What we have not written, or does not fit, is not there.
        """
        places = {key: place for key in keys if (place := self._place(name, key)) is not None}
        if not places:
            return {}
        texts = await self._ask(lambda: self._backend.get_many(*places.values()))
        if texts is None:
            return None
        found: dict[Hashable, Kept] = {}
        for (key, place), text in zip(places.items(), texts, strict=True):
            kept = self._read(place, text)
            if kept is not None and fits(kept[1]):
                found[key] = kept
            elif text is not None:
                self._tell_of_foreign(place)
        return found

    def _tell_of_foreign(self, place: str) -> None:
        if not self._told_of_foreign:
            self._told_of_foreign = True
            log.warning(
                "an entry of the shared cache is not one that this version wrote, or not signed with cache.secret: "
                "such are taken for missing, and this is said once",
                url=self.where,
                entry=place,
            )

    async def put_many(self, name: str, results: Mapping[Hashable, Any], made_at: float, seconds: float) -> bool:
        """Keep results for so long. Return whether that was done; what is no JSON is left out.

        A Redis that is full or may only be read refuses them. It does answer, so it is asked on: what it has is of use.
        """
        texts = {}
        for key, result in results.items():
            place, text = self._place(name, key), document([made_at, result], in_order=False)
            if place is not None and text is not None:
                texts[place] = self._sign(place, text) + text
        if not texts:
            return True
        return bool(await self._ask(lambda: self._put(texts, min(seconds, _LONGEST_SECONDS))))

    async def _put(self, texts: Mapping[str, bytes], seconds: float) -> bool:
        try:
            if len(texts) == 1:
                ((place, text),) = texts.items()
                await self._backend.set(place, text, expire=seconds)
            else:
                await self._backend.set_many(texts, expire=seconds)
        except Exception as error:  # cashews wraps some of what redis raises
            refusal = error if isinstance(error, self._refusal) else error.__cause__
            if not isinstance(refusal, self._refusal):
                raise
            await self._backend.get_many(next(iter(texts)))  # one without our database refuses this too
            said = str(refusal).rpartition(_QUOTED)[2]
            self._tell_of_refusal(f"{type(refusal).__name__}: {said}")
            return False
        self._tell_of_refusal("")
        return True

    def _tell_of_refusal(self, reason: str) -> None:
        """Log it when the Redis begins to take nothing, and when it takes results again."""
        if bool(reason) == self._takes_nothing:
            return
        self._takes_nothing = bool(reason)
        if reason:
            log.warning("the shared cache takes no results; it is still read", url=self.where, error=reason)
        else:
            log.info("the shared cache takes results again", url=self.where)

    async def _ask(self, command: Callable[[], Awaitable[Any]]) -> Any:
        """Return what Redis answers; None when it does not, or is left alone because it did not before."""
        breaker = self._breaker
        era = breaker.era
        if not era and not breaker.probe():
            return None
        timer = self._limit.begin()
        try:
            answer = await command()
        except asyncio.CancelledError:
            if not timer.caused():
                if not era:
                    breaker.rearm()
                raise
            self._failed(era, f"no answer within {self._limit.seconds:g} s")
            return None
        except Exception as error:  # cashews and redis have a dozen between them; a request must see none
            self._failed(era, _reason(error))
            return None
        finally:
            self._limit.end(timer)
        if era:
            breaker.calls += 1
        else:
            breaker.close()
            self._is_out = False
            log.info("the shared cache answers again", url=self.where)
        return answer

    def _failed(self, era: int, reason: str) -> None:
        if era:
            self._breaker.failed(era)
        else:
            self._breaker.reopen()
        if not self._breaker.era and not self._is_out:
            self._is_out = True
            log.warning("the shared cache fails and is left alone until it answers", url=self.where, error=reason)

    # --- what is written ---------------------------------------------------------------------------------------------

    def _place(self, name: str, key: Hashable) -> str | None:
        """Return the key in Redis; None for values that cannot be written as JSON."""
        text = document_of(key)
        if text is None:
            return None
        of = blake2b(name.encode(), digest_size=16).digest()
        return f"{self._prefix}:{blake2b(text, digest_size=20, key=of).hexdigest()}"

    def _sign(self, place: str, text: bytes) -> bytes:
        return hmac.digest(self._secret, place.encode() + b" " + text, "sha256") if self._secret else b""

    def _read(self, place: str, text: Any) -> Kept | None:
        """Return what we have written; None for anything else."""
        if not isinstance(text, bytes):
            return None
        if self._secret:
            signature, text = text[:_SIGNATURE_BYTES], text[_SIGNATURE_BYTES:]
            if not hmac.compare_digest(signature, self._sign(place, text)):
                return None
        try:
            made_at, result = orjson.loads(text)
        except (ValueError, TypeError):
            return None
        return (made_at, result) if isinstance(made_at, float) else None


@asynccontextmanager
async def open_shared_cache(
    options: SharedCacheOptions, clock: Callable[[], float] = monotonic
) -> AsyncIterator[SharedCache]:
    """Open the cache. It connects when it is first asked; whether Redis is there makes no difference until then.

    Raises :class:`MissingExtra` when the libraries for it are not installed.
    """
    try:
        import cashews
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import ResponseError
    except ImportError as error:
        raise MissingExtra(
            f"a cache in Redis needs `pip install orchestrator-api-core[redis]`: {error.name} is not installed"
        ) from error
    seconds = float(options.timeout)
    backend: Any = cashews.Cache().setup(
        options.url,
        pickle_type="null",  # bytes go through as they are
        secret=None,  # with one, cashews would pickle again; ours signs
        suppress=False,
        max_connections=options.max_connections,
        socket_timeout=seconds,
        socket_connect_timeout=seconds,
        wait_for_connection_timeout=seconds,
        retry=Retry(NoBackoff(), 0),
    )
    await backend.init()
    try:
        yield SharedCache(backend, options, clock, ResponseError)
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # cashews 7 closes redis-py the old way
            await backend.close()


def _reason(error: Exception) -> str:
    cause = error.__cause__ or error  # cashews wraps what redis raises
    return f"{type(cause).__name__}: {cause}"


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"
