-- overview: what a queue holds and has done, whatever its length
-- keys: queue
-- args: prefix
-- returns: the queue's hash, the number of running, delayed, parked and dead jobs, the milliseconds since 1970 at which
--   the job was queued that waits longest (0 when none does), and for each type its name and its counters
-- ttl: none
local prefix = ARGV[1]

local oldest = 0
local function look(lane)
  local part = redis.call('LINDEX', lane, 0)
  if not part then
    return
  end
  local entry = redis.call('HGET', prefix .. ':state', part)
  local record = not entry and redis.call('GETRANGE', prefix .. ':job:' .. part, 0, 1023)
  local ms = tonumber(entry and string.match(entry, '^queued %d+ %d+ %d+ (%d+)')
    or record and string.match(record, '^p[^\n]*\n[^\n]*\n[^\n]*\n[^\n]*\n(%d+)'))
  if ms and (oldest == 0 or ms < oldest) then
    oldest = ms
  end
end
for priority = 0, 2 do
  look(prefix .. ':ready:' .. priority)
  for _, flow in ipairs(redis.call('LRANGE', prefix .. ':ring:' .. priority, 0, 99)) do
    if flow ~= '' then
      look(prefix .. ':lane:' .. priority .. ':' .. flow)
    end
  end
end

local types = {}
for _, type in ipairs(redis.call('SMEMBERS', prefix .. ':types')) do
  types[#types + 1] = { type, redis.call('HGETALL', prefix .. ':stats:' .. type) }
end
return {
  redis.call('HGETALL', KEYS[1]),
  redis.call('ZCARD', prefix .. ':running'),
  redis.call('ZCARD', prefix .. ':delayed'),
  redis.call('ZCARD', prefix .. ':parked'),
  redis.call('ZCARD', prefix .. ':dead'),
  string.format('%.0f', oldest),
  types,
}
