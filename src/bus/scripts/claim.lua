-- Takes, keeps or gives up the right to reap a life. KEYS: claim. ARGV: token, ms or 0 to give it up.
-- Answers 1 when it is ours, else 0.
--
-- Race: two nodes reap at once, and one of them ends the other's claim.
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return 1
