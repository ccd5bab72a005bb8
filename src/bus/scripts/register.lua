-- Enters a node as a holder of a user. ARGV: node, incarnation, op, TTL in s, online event or ''.
-- Answers {0} when a later operation of the node came first, else {1, version, other holder, its incarnation, …}.
--
-- Race: a registration that was stalled in a dead connection arrives after the removal that followed it, and would
-- hold the user for ever. Its number is smaller than that of the removal, which is kept for a minute. The event is
-- published in here, so that no other script comes between the change and its event.
local node, incarnation, op = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local user = read_user()
local own, gone = user.holders[node], user.gone[node]
if own and is_later(own.incarnation, own.op, incarnation, op) then return { 0 } end
if gone and is_later(gone.incarnation, gone.op, incarnation, op) then return { 0 } end
local now = now_us()
local version = next_version(user, now)
local since = version
if own and own.incarnation == incarnation then since = own.since end
local newest, newest_since = node, since
local answer = { 1, version }
for _, other in ipairs(user.nodes) do
  if other ~= node then
    local holder = user.holders[other]
    answer[#answer + 1] = other
    answer[#answer + 1] = holder.incarnation
    if holder.since > newest_since then newest, newest_since = other, holder.since end
  end
end
redis.call('HSET', KEYS[2], node, ARGV[2] .. ':' .. ARGV[3] .. ':' .. digits(since), '#version', digits(version))
if gone then redis.call('HDEL', KEYS[2], '#gone:' .. node) end
for other, removal in pairs(user.gone) do
  if other ~= node and removal.ends * 1000 < now then redis.call('HDEL', KEYS[2], '#gone:' .. other) end
end
if user.grace then redis.call('HDEL', KEYS[2], '#grace') end
redis.call('EXPIRE', KEYS[2], ARGV[4])
redis.call('SET', KEYS[1], newest, 'EX', ARGV[4])
-- Within a grace the offline was never published.
if ARGV[5] ~= '' and not own and #user.nodes == 0 and not user.grace then
  redis.call('PUBLISH', 'user:events', ARGV[5])
end
return answer
