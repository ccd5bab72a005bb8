-- Takes the lease of a node id. KEYS: lease, last, lives. ARGV: token of the process, lease in ms, TTL of `last` in s.
-- Answers {1, incarnation, earlier life, …} or {0, incarnation of who has it, ms until it lapses}.
--
-- Race: two processes start with one id. One of them gets the lease. Incarnations grow also when the clock went back
-- or the lease is gone. A process whose answer was lost asks again and gets the same incarnation.
local function digits(number)
  return string.format('%.0f', number)
end
local held = redis.call('GET', KEYS[1])
local holder, token = string.match(held or '', '^(%d+):(.*)$')
if holder and token ~= ARGV[1] then return { 0, tonumber(holder), redis.call('PTTL', KEYS[1]) } end
local lives = redis.call('SMEMBERS', KEYS[3])
local incarnation = tonumber(holder)
if not incarnation then
  local time = redis.call('TIME')
  incarnation = math.max(tonumber(time[1]) * 1000000 + tonumber(time[2]), (tonumber(redis.call('GET', KEYS[2])) or 0) + 1)
  for _, life in ipairs(lives) do incarnation = math.max(incarnation, tonumber(life) + 1) end
end
redis.call('SET', KEYS[1], digits(incarnation) .. ':' .. ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[2], digits(incarnation), 'EX', ARGV[3])
redis.call('SADD', KEYS[3], digits(incarnation))
local answer = { 1, incarnation }
for _, life in ipairs(lives) do
  if tonumber(life) < incarnation then answer[#answer + 1] = tonumber(life) end
end
return answer
