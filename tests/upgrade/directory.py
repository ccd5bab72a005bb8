"""What may remain in Redis when all clients are gone and all nodes have stopped."""

import re

NODE = r"\{n:(?:n1|n2|n3)(?:-2)?\}"
WEEK = 7 * 24 * 3600
# (pattern of a key, the longest time to live in seconds, or None where it may stay for good), for both versions.
ALLOWED = [
    (rf"rm2?:{NODE}:last", WEEK),  # the last life's number
    (rf"rm2?:{NODE}:dead:\d+", WEEK),  # a life that was declared dead
    (rf"rm2?:{NODE}:lag", 10),
    # The numbers of removals, so that an earlier registration that comes late is known as such. With a holder in it, it would
    # live for an hour.
    (r"rm2?:\{\d+\}:loc:.+", 60),
    # The marker of the run of Redis: one key, for good.
    (r"rm2:\{nodes\}:run", None),
]


async def unclean(redis):
    """Keys that should not be there, each with what is wrong."""
    found = []
    async for key in redis.scan_iter(count=1000):
        limits = [limit for pattern, limit in ALLOWED if re.fullmatch(pattern, key)]
        left = await redis.ttl(key)
        if left == -2:
            continue
        if not limits:
            found.append(f"{key} ({'never expires' if left == -1 else f'expires in {left} s'})")
        elif limits[0] is not None and not 0 <= left <= limits[0]:
            found.append(f"{key} (time to live {left} s instead of {limits[0]} s at most)")
    return sorted(found)


async def users_of(redis, node):
    """The keys that list users of that node's lives so far."""
    return {key async for key in redis.scan_iter(match=f"rm*:users:{node}:*", count=1000)}
