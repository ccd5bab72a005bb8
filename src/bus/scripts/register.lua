-- Enters a node as a holder of users. KEYS: run's marker, and named, hash for each user. ARGV: text for a new marker, node,
-- TTL in s, and for each user incarnation, op, online event. Answers {marker, 1 while the run is young, …} and for each
-- user {0} when a later operation of the node came first, else {1, other holder, its incarnation, its op, …}.
--
-- Race: a registration that was stalled in a dead connection arrives after the removal that followed it, and would
-- hold the user for ever. Its number is smaller than that of the removal, which is kept for a minute. The event is
-- published in here, so that no other script comes between the change and its event.
local node, ttl_s, now = ARGV[2], ARGV[3], now_us()

local function register(named, hash, life, number, online)
  local incarnation, op = tonumber(life), tonumber(number)
  local user = read_user(hash)
  local own, gone = user.holders[node], user.gone[node]
  if own and is_later(own.incarnation, own.op, incarnation, op) then return { 0 } end
  if gone and is_later(gone.incarnation, gone.op, incarnation, op) then return { 0 } end
  local since = own and own.incarnation == incarnation and own.since or next_since(user, node, now)
  local newest, newest_since = node, since
  for other, holder in pairs(user.holders) do
    if holder.since > newest_since then newest, newest_since = other, holder.since end
  end
  redis.call('HSET', hash, node, life .. ':' .. number .. ':' .. digits(since))
  if gone then redis.call('HDEL', hash, '#gone:' .. node) end
  for other, removal in pairs(user.gone) do
    if other ~= node and removal.ends * 1000 < now then redis.call('HDEL', hash, '#gone:' .. other) end
  end
  if user.grace then redis.call('HDEL', hash, '#grace') end
  redis.call('EXPIRE', hash, ttl_s)
  redis.call('SET', named, newest, 'EX', ttl_s)
  -- Within a grace the offline was never published.
  if not own and #user.nodes == 0 and not user.grace then redis.call('PUBLISH', 'user:events', online) end
  return append_others({ 1 }, user, node)
end

local answers = { read_run(now, true) }
for at = 1, (#KEYS - 1) / 2 do
  answers[at + 2] = register(KEYS[2 * at], KEYS[2 * at + 1], ARGV[3 * at + 1], ARGV[3 * at + 2], ARGV[3 * at + 3])
end
return answers
