"""How many requests a key may make: a token bucket in Redis, asked once a request."""

import time
from dataclasses import dataclass

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

log = structlog.get_logger()

TIMEOUT_S = 0.25  # a Redis that does not answer is tried twice, for so long each time
AWAY_S = 5.0  # then nobody asks it for so long
TOLD_EVERY_S = 60.0

# By the clock of Redis, as API processes on several machines share a bucket. Numbers come back as
# text: Redis would cut a fraction off. A full bucket is forgotten.
TAKE = """
local size = tonumber(ARGV[1])
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
local kept = redis.call('HMGET', KEYS[1], 'tokens', 'ms')
local tokens = size
if kept[1] then
  tokens = math.min(size, tonumber(kept[1]) + math.max(ms - tonumber(kept[2]), 0) * size / 60000)
end
local allowed = tokens >= 1
if allowed then
  tokens = tokens - 1
end
redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', tokens), 'ms', string.format('%d', ms))
redis.call('PEXPIRE', KEYS[1], 61000)
return {allowed and 1 or 0, string.format('%.6f', tokens)}
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
        self._take = self._redis.register_script(TAKE)
        self._asked_from = 0.0
        self._told_from = 0.0

    async def take(self, key_id: str) -> Allowance | None:
        """Count one request; None when nobody counts."""
        if not self._per_minute or time.monotonic() < self._asked_from:
            return None
        try:
            allowed, tokens = await self._take(
                keys=[f"basin:requests:{key_id}"], args=[self._per_minute]
            )
        except (RedisError, OSError) as error:
            self._leave_alone(error)
            return None
        return Allowance(self._per_minute, allowed=bool(allowed), tokens=float(tokens))

    async def close(self) -> None:
        """Let go of the connections."""
        await self._redis.aclose()

    def _leave_alone(self, error: Exception) -> None:
        now = time.monotonic()
        self._asked_from = now + AWAY_S
        if now >= self._told_from:
            self._told_from = now + TOLD_EVERY_S
            log.warning("requests.not_counted", error=str(error))
