-- Renews the TTL of users that a node holds, and puts back what is missing. KEYS: run's marker, and named, hash for each
-- user. ARGV: text for a new marker, node, TTL in s, incarnation, and the op of each user's registration. Answers
-- {marker, 1 while the run is young, …} and for each user {0, other holder, its incarnation, its op, …} when there was
-- nothing to do, {1, other holder, …} when something had to be put back, {2} when a later operation of the node has taken
-- it off.
--
-- Race: a foreign node's plain SET or DEL of user:node:<user> hits a user that we hold; and a renewal that was under
-- way when the user left must not put the user back: it carries the registration's number, the removal's is greater. So
-- is that of a reaping, which the node learns of in this way.
local node, ttl_s, life, now = ARGV[2], ARGV[3], ARGV[4], now_us()
local incarnation = tonumber(life)

local function renew(named, hash, number)
  local op, name, user = tonumber(number), redis.call('GET', named), read_user(hash)
  local own, gone = user.holders[node], user.gone[node]
  if name and user.holders[name] and own and own.incarnation == incarnation and own.op == op then
    redis.call('EXPIRE', named, ttl_s)
    redis.call('EXPIRE', hash, ttl_s)
    return append_others({ 0 }, user, node)
  end
  if own and is_later(own.incarnation, own.op, incarnation, op) then return { 0 } end
  if gone and is_later(gone.incarnation, gone.op, incarnation, op) then return { 2 } end
  local newest = user.nodes[#user.nodes]
  if not own or is_later(incarnation, op, own.incarnation, own.op) then
    local since
    if own and own.incarnation == incarnation then
      since = own.since
    else
      newest, since = node, next_since(user, node, now)
    end
    redis.call('HSET', hash, node, life .. ':' .. number .. ':' .. digits(since))
    if user.grace then redis.call('HDEL', hash, '#grace') end
  end
  redis.call('EXPIRE', hash, ttl_s)
  redis.call('SET', named, newest, 'EX', ttl_s)
  return append_others({ 1 }, user, node)
end

local answers = { read_run(now, true) }
for at = 1, (#KEYS - 1) / 2 do
  answers[at + 2] = renew(KEYS[2 * at], KEYS[2 * at + 1], ARGV[4 + at])
end
return answers
