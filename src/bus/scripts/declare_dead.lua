-- Declares a life dead if its lease is missing. KEYS: lease, dead. ARGV: incarnation, TTL of the declaration in s, 1 to
-- declare it also if it has its lease. Answers 1 when it is dead now, else 0.
--
-- Race: between an observer's look and this call the node renews. The look is repeated in here, in one step with the
-- declaration, which the node's next renewal finds. A life that was declared dead before, and has its lease again since
-- Redis lost the declaration, is declared again: its users are off the directory, and others have let go of it.
local holder = tonumber(string.match(redis.call('GET', KEYS[1]) or '', '^(%d+):'))
if holder and holder <= tonumber(ARGV[1]) and ARGV[3] ~= '1' then return 0 end
redis.call('SET', KEYS[2], '1', 'EX', ARGV[2])
return 1
