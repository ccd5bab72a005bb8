-- Enters a node's life in the registry. KEYS: run's marker, registry. ARGV: text for a new marker, node, incarnation, the
-- marker of the run in which all users of that life were entered, version:capabilities.
-- Answers {marker, 1 while the run is young, 1 if the life is entered now, else 0}.
--
-- Race: Redis loses what was written just before a node says that all its users are entered; and an earlier life's entry
-- comes late and hits that of the life after it.
local marker, is_young = read_run(now_us(), true)
local entered = tonumber(string.match(redis.call('HGET', KEYS[2], ARGV[2]) or '', '^%d+')) or 0
if marker ~= ARGV[4] or entered > tonumber(ARGV[3]) then return { marker, is_young, 0 } end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3] .. ':' .. marker .. ':' .. ARGV[5])
return { marker, is_young, 1 }
