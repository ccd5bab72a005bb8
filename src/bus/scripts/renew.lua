-- Renews the TTL of a user that a node holds, and puts back what is missing. ARGV: node, incarnation, op, TTL in s.
-- Answers 1 when something had to be put back, else 0.
--
-- Race: a foreign node's plain SET or DEL of user:node:<user> hits a user that we hold; and a renewal that was under
-- way when the user left must not put the user back: it carries the registration's number, the removal's is greater.
local node, incarnation, op = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local named = redis.call('GET', KEYS[1])
if named and redis.call('HEXISTS', KEYS[2], named) == 1 then
  local own = redis.call('HGET', KEYS[2], node)
  if own and string.find(own, ARGV[2] .. ':' .. ARGV[3] .. ':', 1, true) == 1 then
    redis.call('EXPIRE', KEYS[1], ARGV[4])
    redis.call('EXPIRE', KEYS[2], ARGV[4])
    return 0
  end
end
local user = read_user()
local own, gone = user.holders[node], user.gone[node]
if own and is_later(own.incarnation, own.op, incarnation, op) then return 0 end
if gone and is_later(gone.incarnation, gone.op, incarnation, op) then return 0 end
local newest = user.nodes[#user.nodes]
if not own or is_later(incarnation, op, own.incarnation, own.op) then
  local version = next_version(user, now_us())
  local since = version
  if own and own.incarnation == incarnation then since = own.since else newest = node end
  redis.call('HSET', KEYS[2], node, ARGV[2] .. ':' .. ARGV[3] .. ':' .. digits(since), '#version', digits(version))
  if user.grace then redis.call('HDEL', KEYS[2], '#grace') end
end
redis.call('EXPIRE', KEYS[2], ARGV[4])
redis.call('SET', KEYS[1], newest, 'EX', ARGV[4])
return 1
