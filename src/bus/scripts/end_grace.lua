-- Ends a user's grace. ARGV: node, incarnation, offline event.
-- Answers {0, op} when it is over for this node, op being the removal's number, or -1 if that is forgotten; {1} when
-- the node holds the user; {2, ms} when the deadline is so far away.
--
-- Race: the user comes back just before the grace ends. Looking and publishing are one step, so an offline is
-- published only when nobody holds the user, and once: the deadline goes with it.
local node, incarnation = ARGV[1], tonumber(ARGV[2])
local user = read_user(KEYS[2])
if user.holders[node] then return { 1 } end
local grace = user.grace
if grace and #user.nodes == 0 and grace.node == node and grace.incarnation <= incarnation then
  local left_ms = grace.ends - math.floor(now_us() / 1000)
  if left_ms > 0 then return { 2, left_ms } end
  redis.call('HDEL', KEYS[2], '#grace')
  redis.call('PUBLISH', 'user:events', ARGV[3])
end
local gone = user.gone[node]
return { 0, gone and gone.op or -1 }
