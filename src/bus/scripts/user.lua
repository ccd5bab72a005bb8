-- What the scripts of the directory share; it stands in front of each of them, behind shared.lua.
--
-- Each user has two keys: `named`, user:node:<user>, the contract's string; and `hash`, the user's holders:
--   <node>       -> incarnation:op:since    a holder, the number that wrote it, and since when it holds (us); greater
--                                           than that of every holder before it, also when the clock went back
--   #gone:<node> -> incarnation:op:until    the number of a removal, kept until then (ms), so that an earlier
--                                           registration that comes late is known as such
--   #grace       -> until:incarnation:node  nobody holds the user; offline is to be published then (ms)
-- Numbers are below 2^53, so Lua's are exact.

local function three(text)
  local a, b, c = string.match(text, '^(%d+):(%d+):(.+)$')
  return tonumber(a), tonumber(b), c
end

-- Whether the number (incarnation, op) is later than the second.
local function is_later(incarnation, op, than_incarnation, than_op)
  return incarnation > than_incarnation or (incarnation == than_incarnation and op > than_op)
end

-- The hash, with its holders in `nodes`, the oldest first.
local function read_user(hash)
  local user = { nodes = {}, holders = {}, gone = {} }
  local all = redis.call('HGETALL', hash)
  for at = 1, #all, 2 do
    local field, value = all[at], all[at + 1]
    if string.byte(field) ~= 35 then
      local incarnation, op, since = three(value)
      if incarnation then
        user.holders[field] = { incarnation = incarnation, op = op, since = tonumber(since) }
        user.nodes[#user.nodes + 1] = field
      end
    elseif field == '#grace' then
      local ends, incarnation, node = three(value)
      user.grace = { ends = ends or 0, incarnation = incarnation or 0, node = node }
    else
      local incarnation, op, ends = three(value)
      if incarnation then
        user.gone[string.sub(field, 7)] = { incarnation = incarnation, op = op, ends = tonumber(ends) }
      end
    end
  end
  if #user.nodes > 1 then
    table.sort(user.nodes, function(a, b)
      return user.holders[a].since < user.holders[b].since
    end)
  end
  return user
end

-- Since when a node holds that begins now: every other holder is older.
local function next_since(user, node, now)
  local since = now
  for other, holder in pairs(user.holders) do
    if other ~= node then since = math.max(since, holder.since + 1) end
  end
  return since
end

-- Appends the holders but `node` to an answer, the oldest first: node, incarnation, op, node, ….
local function append_others(answer, user, node)
  for _, other in ipairs(user.nodes) do
    if other ~= node then
      local holder = user.holders[other]
      answer[#answer + 1] = other
      answer[#answer + 1] = holder.incarnation
      answer[#answer + 1] = holder.op
    end
  end
  return answer
end

-- Takes `node` off: leaves the number of the removal, promotes the newest of the other holders, or ends the user's
-- presence, with a grace or at once. `offline` is the event's JSON.
local function remove(named, hash, user, node, incarnation, op, now, keep_ms, ttl_s, grace_ms, offline)
  local held = user.holders[node]
  local now_ms = math.floor(now / 1000)
  redis.call('HDEL', hash, node)
  redis.call('HSET', hash,
    '#gone:' .. node, digits(incarnation) .. ':' .. digits(op) .. ':' .. digits(now_ms + keep_ms + grace_ms))
  local newest
  for _, other in ipairs(user.nodes) do
    if other ~= node then newest = other end
  end
  if newest then
    redis.call('SET', named, newest, 'EX', ttl_s)
    redis.call('EXPIRE', hash, ttl_s)
    return
  end
  local name = redis.call('GET', named)
  if name == node then redis.call('DEL', named) end
  local ends = now_ms + keep_ms + grace_ms
  if user.grace then ends = math.max(ends, user.grace.ends + keep_ms) end
  redis.call('PEXPIREAT', hash, digits(ends))
  -- A string that names another node is a foreign node's: there the user is still online.
  if (held and not name) or name == node then
    if grace_ms > 0 then
      redis.call('HSET', hash, '#grace', digits(now_ms + grace_ms) .. ':' .. digits(incarnation) .. ':' .. node)
    else
      redis.call('HDEL', hash, '#grace')
      redis.call('PUBLISH', 'user:events', offline)
    end
  end
end
