-- Enters a node's life in the registry, or strikes it off. KEYS: registry. ARGV: node, incarnation, 1 to enter.
--
-- Race: an earlier life's entry, or its removal, comes late and hits that of the life after it.
local entered = tonumber(redis.call('HGET', KEYS[1], ARGV[1])) or 0
if entered > tonumber(ARGV[2]) then return 0 end
if ARGV[3] == '1' then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) else redis.call('HDEL', KEYS[1], ARGV[1]) end
return 1
