-- finish: ends a lease: the job has completed or failed, or goes back to the front of its queue
-- keys: time running record stats ready
-- args: id token state error now_ms ttl_s time_ttl_s channel message
-- returns: 1, or 0 when the lease was not this worker's any more, and nothing was changed
-- ttl: time by time_ttl_s; a record that has ended by ttl_s
local id, token, state = ARGV[1], ARGV[2], ARGV[3]
local time, running, record, stats, ready = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]

local current, attempt = unpack(redis.call('HMGET', record, 'state', 'attempt'))
if current ~= 'running' or attempt ~= token then
  return 0
end
local now = math.max(tonumber(ARGV[5]), tonumber(redis.call('GET', time) or '0'))
now = string.format('%.0f', now)
redis.call('SET', time, now, 'EX', ARGV[7])

redis.call('ZREM', running, id)
redis.call('HSET', record, 'state', state)
if state == 'queued' then
  redis.call('LPUSH', ready, id)
else
  redis.call('HSET', record, 'ended_ms', now)
  if ARGV[4] ~= '' then
    redis.call('HSET', record, 'error', ARGV[4])
  end
  redis.call('EXPIRE', record, ARGV[6])
end

-- Neither broken statistics nor a silent channel may cost a result.
redis.pcall('HINCRBY', stats, 'running', -1)
redis.pcall('HINCRBY', stats, state, 1)
redis.pcall('PUBLISH', ARGV[8], ARGV[9])
return 1
