"""How many requests a key may make: a token bucket in Redis, asked before each is answered."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from app.rounds import Rounds

log = structlog.get_logger()

TIMEOUT_S = 0.25  # a Redis that does not answer is tried twice, for so long each time
AWAY_S = 5.0  # then nobody asks it for so long
TOLD_EVERY_S = 60.0

# By the clock of Redis, as API processes on several machines share a bucket. Of the requests that
# came at the same time, so many pass as there are tokens. Numbers come back as text: Redis would
# cut a fraction off. A full bucket is forgotten.
TAKE = """
local size = tonumber(ARGV[1])
local asked = tonumber(ARGV[2])
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
local kept = redis.call('HMGET', KEYS[1], 'tokens', 'ms')
local tokens = size
if kept[1] then
  tokens = math.min(size, tonumber(kept[1]) + math.max(ms - tonumber(kept[2]), 0) * size / 60000)
end
local allowed = math.min(asked, math.floor(tokens))
tokens = tokens - allowed
redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', tokens), 'ms', string.format('%d', ms))
redis.call('PEXPIRE', KEYS[1], 61000)
return {allowed, string.format('%.6f', tokens)}
"""


@dataclass(frozen=True)
class Allowance:
    """What a bucket of `per_minute` says: whether this request passes, and what is left."""

    per_minute: int
    allowed: bool
    tokens: float

    @property
    def full_after_s(self) -> float:
        """Seconds until as many requests are allowed at once as ever."""
        return (self.per_minute - self.tokens) * 60 / self.per_minute

    @property
    def next_after_s(self) -> float:
        """Seconds until one more request is allowed."""
        return max(1 - self.tokens, 0) * 60 / self.per_minute


class Buckets:
    """One bucket a key. When Redis is away, everything is allowed."""

    def __init__(self, redis_url: str, *, per_minute: int) -> None:
        self._per_minute = per_minute
        self._redis = Redis.from_url(
            redis_url,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            # Once more, at once: after a restart of Redis the pool's connections are stale.
            retry=Retry(NoBackoff(), 1),
        )
        self._script = self._redis.register_script(TAKE)
        self._rounds = Rounds(self._take_all)
        self._asked_from = 0.0
        self._told_from = 0.0

    async def take(self, key_id: str) -> Allowance | None:
        """Count one request; None when nobody counts."""
        if not self._per_minute or time.monotonic() < self._asked_from:
            return None
        allowances = await self._rounds.ask([key_id])
        return next(allowances[key_id]) if key_id in allowances else None

    async def close(self) -> None:
        """Let go of the connections."""
        await self._redis.aclose()

    async def _take_all(self, key_ids: Sequence[str]) -> dict[str, Iterator[Allowance]]:
        """Count requests that came at the same time; return what each key's are told, in turn."""
        if time.monotonic() < self._asked_from:  # the round before this one found nobody
            return {}
        counts = Counter(key_ids)
        try:
            told = await asyncio.gather(*(self._ask(*each) for each in counts.items()))
            return {
                key_id: self._allowances(asked, *each)
                for (key_id, asked), each in zip(counts.items(), told, strict=True)
            }
        except (RedisError, OSError) as error:
            self._leave_alone(error)
            return {}

    async def _ask(self, key_id: str, asked: int) -> tuple[int, float]:
        """Take so many tokens, or those that there are; return how many, and how many are left."""
        allowed, tokens = await self._script(
            keys=[f"basin:requests:{key_id}"], args=[self._per_minute, asked]
        )
        return int(allowed), float(tokens)

    def _allowances(self, asked: int, allowed: int, tokens: float) -> Iterator[Allowance]:
        for number in range(asked):
            left = tokens + max(allowed - 1 - number, 0)
            yield Allowance(self._per_minute, allowed=number < allowed, tokens=left)

    def _leave_alone(self, error: Exception) -> None:
        now = time.monotonic()
        self._asked_from = now + AWAY_S
        if now >= self._told_from:
            self._told_from = now + TOLD_EVERY_S
            log.warning("requests.not_counted", error=str(error))
