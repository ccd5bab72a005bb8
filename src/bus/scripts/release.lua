-- Gives up a lease. KEYS: lease, lives. ARGV: incarnation, token, 1 if no user of this life is listed.
--
-- Race: another process has taken the lease since; it keeps it. A life that has left users behind stays on record,
-- so that the next one, or another node, takes them off.
local holder, token = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+):([^:]*)')
if holder == ARGV[1] and token == ARGV[2] then redis.call('DEL', KEYS[1]) end
if ARGV[3] == '1' then redis.call('SREM', KEYS[2], ARGV[1]) end
return 1
