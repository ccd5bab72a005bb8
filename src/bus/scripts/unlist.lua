-- Takes users off a bucket. KEYS: bucket. ARGV: user, op, user, op, …
--
-- Race: this comes late, after a user was listed again, and a crash would leave that user in the directory for ever.
-- What a later operation listed stays.
for at = 1, #ARGV, 2 do
  local listed = redis.call('HGET', KEYS[1], ARGV[at])
  if listed and tonumber(listed) <= tonumber(ARGV[at + 1]) then redis.call('HDEL', KEYS[1], ARGV[at]) end
end
return 1
