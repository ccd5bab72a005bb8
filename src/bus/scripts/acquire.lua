-- Takes the lease of a node id. KEYS: lease, last, lives. ARGV: token of the process, lease in ms, TTL of `last` in s, the
-- process' life so far or 0, version:capabilities.
-- Answers {1, incarnation, earlier life, …} or {0, incarnation of who has it, ms until it lapses}.
--
-- Race: two processes start with one id. One of them gets the lease. Incarnations grow also when the clock went back
-- or the lease is gone. A process whose answer was lost asks again and gets the same incarnation; one that needs another
-- life, since it was declared dead, says which it had and never gets that one again.
local held = redis.call('GET', KEYS[1])
local holder, token = string.match(held or '', '^(%d+):([^:]*)')
if holder and token ~= ARGV[1] then return { 0, tonumber(holder), redis.call('PTTL', KEYS[1]) } end
local lives = redis.call('SMEMBERS', KEYS[3])
local incarnation, after = tonumber(holder), tonumber(ARGV[4])
if not incarnation or incarnation <= after then
  local last = tonumber(redis.call('GET', KEYS[2])) or 0
  incarnation = math.max(now_us(), last + 1, after + 1, (incarnation or 0) + 1)
  for _, life in ipairs(lives) do incarnation = math.max(incarnation, tonumber(life) + 1) end
end
redis.call('SET', KEYS[1], digits(incarnation) .. ':' .. ARGV[1] .. ':' .. ARGV[5], 'PX', ARGV[2])
redis.call('SET', KEYS[2], digits(incarnation), 'EX', ARGV[3])
redis.call('SADD', KEYS[3], digits(incarnation))
local answer = { 1, incarnation }
for _, life in ipairs(lives) do
  if tonumber(life) < incarnation then answer[#answer + 1] = tonumber(life) end
end
return answer
