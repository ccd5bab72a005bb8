-- Renews the TTL of users that a node holds, and puts back what is missing. KEYS: named, hash for each user. ARGV: node,
-- incarnation, TTL in s, and the op of each user's registration. Answers for each user 1 when something had to be put
-- back, else 0.
--
-- Race: a foreign node's plain SET or DEL of user:node:<user> hits a user that we hold; and a renewal that was under
-- way when the user left must not put the user back: it carries the registration's number, the removal's is greater.
local node, life, ttl_s, now = ARGV[1], ARGV[2], ARGV[3], now_us()
local incarnation = tonumber(life)

local function renew(named, hash, number)
  local name, entry = redis.call('GET', named), redis.call('HGET', hash, node)
  local is_named = name == node or (name and redis.call('HEXISTS', hash, name) == 1)
  local expected = life .. ':' .. number .. ':'
  if is_named and entry and string.sub(entry, 1, #expected) == expected then
    redis.call('EXPIRE', named, ttl_s)
    redis.call('EXPIRE', hash, ttl_s)
    return 0
  end
  local op, user = tonumber(number), read_user(hash)
  local own, gone = user.holders[node], user.gone[node]
  if own and is_later(own.incarnation, own.op, incarnation, op) then return 0 end
  if gone and is_later(gone.incarnation, gone.op, incarnation, op) then return 0 end
  local newest = user.nodes[#user.nodes]
  if not own or is_later(incarnation, op, own.incarnation, own.op) then
    local version = next_version(user, now)
    local since = version
    if own and own.incarnation == incarnation then since = own.since else newest = node end
    redis.call('HSET', hash, node, life .. ':' .. number .. ':' .. digits(since), '#version', digits(version))
    if user.grace then redis.call('HDEL', hash, '#grace') end
  end
  redis.call('EXPIRE', hash, ttl_s)
  redis.call('SET', named, newest, 'EX', ttl_s)
  return 1
end

local answers = {}
for at = 1, #KEYS / 2 do
  answers[at] = renew(KEYS[2 * at - 1], KEYS[2 * at], ARGV[3 + at])
end
return answers
