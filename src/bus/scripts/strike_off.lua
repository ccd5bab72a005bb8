-- Strikes a node's life off the registry. KEYS: registry. ARGV: node, incarnation.
--
-- Race: an earlier life's removal comes late and hits the entry of the life after it.
local entered = tonumber(string.match(redis.call('HGET', KEYS[1], ARGV[1]) or '', '^%d+')) or 0
if entered > tonumber(ARGV[2]) then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
return 1
