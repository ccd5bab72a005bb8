-- Renews a lease. KEYS: lease, last, lives, dead. ARGV: incarnation, token, lease in ms, TTL of `last` in s,
-- version:capabilities. Answers 'ours', 'taken' or 'dead'.
--
-- Race: a node that was stalled finds its lease gone. If nobody took it and nobody declared the node dead, it was
-- Redis that had stalled, and the node goes on; else its users may be off the directory already, and it must not.
if redis.call('EXISTS', KEYS[4]) == 1 then return 'dead' end
local held = redis.call('GET', KEYS[1])
local holder, token = string.match(held or '', '^(%d+):([^:]*)')
if held and (holder ~= ARGV[1] or token ~= ARGV[2]) then return 'taken' end
if not held and (tonumber(redis.call('GET', KEYS[2])) or 0) > tonumber(ARGV[1]) then return 'taken' end
redis.call('SET', KEYS[1], ARGV[1] .. ':' .. ARGV[2] .. ':' .. ARGV[5], 'PX', ARGV[3])
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[4])
redis.call('SADD', KEYS[3], ARGV[1])
return 'ours'
