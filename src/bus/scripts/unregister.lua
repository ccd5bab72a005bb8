-- Takes a node off users' holders. KEYS: named, hash for each user. ARGV: node, TTL in s, how long a removal's number is
-- kept in ms, and for each user incarnation, op, grace in ms, offline event. Answers for each user 0 when a later
-- operation of the node came first, else 1.
--
-- Race: a removal that was stalled arrives after the user has come back to the node, or to another one, and would make
-- the user unreachable. It removes only what it was meant for: this node's entry, and not a later one.
local node, ttl_s, keep_ms, now = ARGV[1], ARGV[2], tonumber(ARGV[3]), now_us()

local function unregister(named, hash, incarnation, op, grace_ms, offline)
  local user = read_user(hash)
  local own, gone = user.holders[node], user.gone[node]
  if own and is_later(own.incarnation, own.op, incarnation, op) then return 0 end
  if gone and not is_later(incarnation, op, gone.incarnation, gone.op) then return 1 end
  remove(named, hash, user, node, incarnation, op, now, keep_ms, ttl_s, grace_ms, offline)
  return 1
end

local answers = {}
for at = 1, #KEYS / 2 do
  local own = 4 * at
  answers[at] = unregister(KEYS[2 * at - 1], KEYS[2 * at], tonumber(ARGV[own]), tonumber(ARGV[own + 1]),
    tonumber(ARGV[own + 2]), ARGV[own + 3])
end
return answers
