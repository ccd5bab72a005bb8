-- Which run of Redis answers; it stands in front of the scripts that say so. KEYS[1]: the run's marker. ARGV[1]: a text
-- that no other call has, for a marker that has to be written; `math.random` repeats after a restart.
--
-- The marker is created (us):text:replication id.
--
-- Race: Redis loses what was written, and nobody notices before somebody is told that a user is nowhere. A Redis that
-- was emptied has no marker. One that restarted from an old file, or a replica that took over without the newest writes,
-- has the marker of the run that ended, and another replication id.

-- A run is young for so long (us): nodes may not have entered their users again yet.
local YOUNG_US = 3000000

-- '-' when it is not known, for instance because the access control list forbids INFO.
local function replication_id()
  local info = redis.pcall('INFO', 'replication')
  return type(info) == 'string' and string.match(info, 'master_replid:(%x+)') or '-'
end

-- The marker, and 1 while the run is young, else 0. Writes one if it is missing or, where `checks`, names another
-- replication id.
local function read_run(now, checks)
  local marker = redis.call('GET', KEYS[1])
  local created, written_by = string.match(marker or '', '^(%d+):[^:]*:([^:]*)$')
  local id = (checks or not created) and replication_id() or '-'
  if not created or (id ~= '-' and id ~= written_by) then
    created = digits(now)
    marker = created .. ':' .. ARGV[1] .. ':' .. id
    redis.call('SET', KEYS[1], marker)
  end
  local age_us = now - tonumber(created)
  return marker, (age_us >= 0 and age_us < YOUNG_US) and 1 or 0
end
