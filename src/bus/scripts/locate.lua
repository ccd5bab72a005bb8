-- Where a user is. KEYS: run's marker, named, hash. ARGV: text for a new marker, 1 to compare the replication id.
-- Answers {marker, 1 while the run is young, what user:node:<user> names or false, holder, its incarnation, its op, …},
-- the oldest first.
--
-- Race: the hash and the string read one after the other, with a change between them, would show a node of ours as a
-- foreign one, or nobody.
local marker, is_young = read_run(now_us(), ARGV[2] == '1')
return append_others({ marker, is_young, redis.call('GET', KEYS[2]) }, read_user(KEYS[3]), nil)
