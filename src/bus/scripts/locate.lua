-- Where a user is. Answers {version, what user:node:<user> names or false, holder, its incarnation, …}, the oldest first.
--
-- Race: the hash and the string read one after the other, with a change between them, would show a node of ours as a
-- foreign one, or nobody.
local user = read_user(KEYS[2])
local answer = { #user.nodes > 0 and user.version or 0, redis.call('GET', KEYS[1]) }
for _, node in ipairs(user.nodes) do
  answer[#answer + 1] = node
  answer[#answer + 1] = user.holders[node].incarnation
end
return answer
