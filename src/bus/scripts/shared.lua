-- What several scripts need; it stands in front of them.

local function now_us()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- Lua prints large numbers with an exponent.
local function digits(number)
  return string.format('%.0f', number)
end
