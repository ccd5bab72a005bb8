-- Takes a node off a user's holders. ARGV: node, incarnation, op, TTL in s, grace in ms, offline event, how long the
-- removal's number is kept in ms. Answers 0 when a later operation of the node came first, else 1.
--
-- Race: a removal that was stalled arrives after the user has come back to the node, or to another one, and would make
-- the user unreachable. It removes only what it was meant for: this node's entry, and not a later one.
local node, incarnation, op = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local user = read_user()
local own, gone = user.holders[node], user.gone[node]
if own and is_later(own.incarnation, own.op, incarnation, op) then return 0 end
if gone and not is_later(incarnation, op, gone.incarnation, gone.op) then return 1 end
remove(user, node, incarnation, op, now_us(), tonumber(ARGV[7]), ARGV[4], tonumber(ARGV[5]), ARGV[6])
return 1
