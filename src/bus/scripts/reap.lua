-- Takes a dead life of a node off a user's holders. ARGV: node, incarnation, TTL in s, offline event, how long the
-- removal's number is kept in ms. Answers 0, or for how many ms the user's grace, which that life left, still runs.
--
-- Race: the node has come back and holds the user again in a new life, or was alive all the time. Only entries of that
-- life, and of lives before it, are removed; the number that is kept is greater than any of that life.
local node, incarnation = ARGV[1], tonumber(ARGV[2])
local user = read_user(KEYS[2])
local own, grace = user.holders[node], user.grace
if own and own.incarnation > incarnation then return 0 end
local now = now_us()
if own or redis.call('GET', KEYS[1]) == node then
  remove(KEYS[1], KEYS[2], user, node, incarnation, 9007199254740991, now, tonumber(ARGV[5]), ARGV[3], 0, ARGV[4])
  return 0
end
if grace and #user.nodes == 0 and grace.node == node and grace.incarnation <= incarnation then
  local left_ms = grace.ends - math.floor(now / 1000)
  if left_ms > 0 then return left_ms end
  redis.call('HDEL', KEYS[2], '#grace')
  redis.call('PUBLISH', 'user:events', ARGV[4])
end
return 0
