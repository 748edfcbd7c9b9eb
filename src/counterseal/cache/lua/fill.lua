-- fill: stores a loaded value, unless what is stored is not what its loader saw; then gives the lease back
-- keys: value lease
-- args: token seen data ttl_ms before_ms loaded changed
-- returns: 1, or 0 when something was written or invalidated meanwhile, somebody else loads now, or the load took too
--   long to know
-- ttl: value by ttl_ms
local token, seen, data, ttl_ms, before_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local loaded, changed = ARGV[6], ARGV[7]

-- A tombstone outlives `before_ms`. The server's own clock is asked, because this call may have waited in front of a
-- server that stood still, and come to its turn when the tombstone had gone.
local time = redis.call('TIME')
local in_time = tonumber(time[1]) * 1000 < before_ms

-- Another holder came after a clear, or after the lease had run out: what was loaded before it would refuse its fill.
-- No lease at all: the value was invalidated. A lease that ran out is kept for longer than any load that may fill.
local holder, awaited = string.match(redis.call('GET', KEYS[2]) or '', '^(%S+) .* ([01])$')
local stored = 0
if in_time and holder == token and redis.call('GETRANGE', KEYS[1], 2, 17) == seen then
  redis.call('SET', KEYS[1], data, 'PX', ttl_ms)
  if changed ~= '' then
    redis.pcall('PUBLISH', changed, KEYS[1])
  end
  stored = 1
end

if holder == token then
  redis.call('DEL', KEYS[2])
  if awaited == '1' then
    redis.pcall('PUBLISH', loaded, KEYS[1])
  end
end
return stored
