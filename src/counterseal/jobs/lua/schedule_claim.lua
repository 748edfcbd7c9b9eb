-- schedule_claim: gives the schedules that are due to one caller, and to nobody else for the time of a lease
-- keys: schedules next
-- args: now_ms lease_ms most seen_every_ms sets...
-- returns: when the next one is due, or -1; the line of each set or ''; then id and entry of each schedule that is due
-- ttl: none, both keys are configuration
-- The sets come as pairs: a source and the name of the set that this caller has in its code. When that is the one that
-- stands, its line `name seen_ms past...` notes that somebody who has it is alive.
local now, lease, most, seen_every = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

local sets = {}
for i = 5, #ARGV, 2 do
  local field, name = ':' .. ARGV[i], ARGV[i + 1]
  local line = redis.call('HGET', KEYS[1], field) or ''
  local stands, seen, past = line:match('^(%S+) (%d+)(.*)$')
  if stands == name and now - tonumber(seen) >= seen_every then
    line = string.format('%s %.0f%s', stands, now, past)
    redis.call('HSET', KEYS[1], field, line)
  end
  sets[#sets + 1] = line
end

local later = redis.call('ZRANGEBYSCORE', KEYS[2], string.format('(%.0f', now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now), 'LIMIT', 0, most)
local found = {}
for _, id in ipairs(due) do
  local entry = redis.call('HGET', KEYS[1], id)
  if entry then
    redis.call('ZADD', KEYS[2], string.format('%.0f', now + lease), id)
    found[#found + 1] = id
    found[#found + 1] = entry
  else
    redis.call('ZREM', KEYS[2], id)
  end
end
return { later[2] and string.format('%.0f', tonumber(later[2])) or '-1', sets, found }
