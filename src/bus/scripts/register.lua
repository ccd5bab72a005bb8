-- Enters a node as a holder of users. KEYS: named, hash for each user. ARGV: node, TTL in s, and for each user incarnation,
-- op, online event. Answers for each user {0} when a later operation of the node came first, else {1, version, other
-- holder, its incarnation, …}.
--
-- Race: a registration that was stalled in a dead connection arrives after the removal that followed it, and would
-- hold the user for ever. Its number is smaller than that of the removal, which is kept for a minute. The event is
-- published in here, so that no other script comes between the change and its event.
local node, ttl_s, now = ARGV[1], ARGV[2], now_us()

local function register(named, hash, life, number, online)
  local incarnation, op = tonumber(life), tonumber(number)
  local user = read_user(hash)
  local own, gone = user.holders[node], user.gone[node]
  if own and is_later(own.incarnation, own.op, incarnation, op) then return { 0 } end
  if gone and is_later(gone.incarnation, gone.op, incarnation, op) then return { 0 } end
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
  redis.call('HSET', hash, node, life .. ':' .. number .. ':' .. digits(since), '#version', digits(version))
  if gone then redis.call('HDEL', hash, '#gone:' .. node) end
  for other, removal in pairs(user.gone) do
    if other ~= node and removal.ends * 1000 < now then redis.call('HDEL', hash, '#gone:' .. other) end
  end
  if user.grace then redis.call('HDEL', hash, '#grace') end
  redis.call('EXPIRE', hash, ttl_s)
  redis.call('SET', named, newest, 'EX', ttl_s)
  -- Within a grace the offline was never published.
  if not own and #user.nodes == 0 and not user.grace then redis.call('PUBLISH', 'user:events', online) end
  return answer
end

local answers = {}
for at = 1, #KEYS / 2 do
  answers[at] = register(KEYS[2 * at - 1], KEYS[2 * at], ARGV[3 * at], ARGV[3 * at + 1], ARGV[3 * at + 2])
end
return answers
