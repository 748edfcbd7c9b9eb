-- overview: what a queue holds and has done, whatever its length
-- keys: queue
-- args: prefix now_ms keep_dead_ms
-- returns: the queue's hash, the number of running, delayed, parked and dead jobs, the milliseconds since 1970 at which
--   the job was queued that waits longest (0 when none does), and for each type its name and its counters
-- ttl: none
local prefix, now = ARGV[1], tonumber(ARGV[2])
local FIRST = 20 -- of a lane: those that were cancelled are still in it

local time = redis.call('HGET', KEYS[1], 'time')
if time and tonumber(time) > now then
  now = tonumber(time)
end
local oldest = 0
local function look(lane)
  for _, part in ipairs(redis.call('LRANGE', lane, 0, FIRST - 1)) do
    local entry = redis.call('HGET', prefix .. ':state', part)
    local record = not entry and redis.call('GETRANGE', prefix .. ':job:' .. part, 0, 4095)
    local ms = tonumber(entry and string.match(entry, '^queued %d+ %d+ %d+ (%d+)')
      or record and string.match(record, '^p[^\n]*\n[^\n]*\n[^\n]*\n[^\n]*\n(%d+)'))
    if ms then
      oldest = (oldest == 0 or ms < oldest) and ms or oldest
      return
    end
  end
end
-- Flows are in a ring, or stalled.
local stalled = redis.call('ZRANGE', prefix .. ':flowdue', 0, 99)
for priority = 0, 2 do
  look(prefix .. ':ready:' .. priority)
  for _, flows in ipairs({ redis.call('LRANGE', prefix .. ':ring:' .. priority, 0, 99), stalled }) do
    for _, flow in ipairs(flows) do
      if flow ~= '' then
        look(prefix .. ':lane:' .. priority .. ':' .. flow)
      end
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
  redis.call('ZCOUNT', prefix .. ':dead', string.format('(%.0f', now - ARGV[3]), '+inf'),
  string.format('%.0f', oldest),
  types,
}
