-- The registry. KEYS: run's marker, registry. ARGV: text for a new marker.
-- Answers {marker, 1 while the run is young, node, its entry, …}.
--
-- Race: Redis is emptied between reading the registry and reading the marker, and an entry that is gone counts as one of
-- the new run.
local marker, is_young = read_run(now_us(), true)
local answer = { marker, is_young }
for _, part in ipairs(redis.call('HGETALL', KEYS[2])) do answer[#answer + 1] = part end
return answer
