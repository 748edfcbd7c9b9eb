-- lease: takes over the jobs of workers that did not come back, then hands queued ones to this worker
-- keys: time running ready...
-- args: prefix now_ms lease_ms count most_lost lost_error ttl_s time_ttl_s wake done
-- returns: a list of id, attempt, type, payload for each job that is now leased; attempt is its fencing token
-- ttl: time by time_ttl_s; a record that fails here by ttl_s
local prefix, now, lease_ms, count = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local most_lost, lost_error, ttl_s, wake, done = tonumber(ARGV[5]), ARGV[6], ARGV[7], ARGV[9], ARGV[10]
local running = KEYS[2]

local function whole(number)
  return string.format('%.0f', number)
end

-- Neither broken statistics nor a silent channel may cost a job, so both are tried only.
local function move(type, from, to)
  redis.pcall('HINCRBY', prefix .. ':stats:' .. type, from, -1)
  redis.pcall('HINCRBY', prefix .. ':stats:' .. type, to, 1)
end

now = math.max(now, tonumber(redis.call('GET', KEYS[1]) or '0'))
redis.call('SET', KEYS[1], whole(now), 'EX', ARGV[8])

for _, id in ipairs(redis.call('ZRANGEBYSCORE', running, '-inf', whole(now), 'LIMIT', 0, 100)) do
  local record = prefix .. ':job:' .. id
  local type = redis.call('HGET', record, 'type')
  redis.call('ZREM', running, id)
  if type then
    if redis.call('HINCRBY', record, 'lost', 1) >= most_lost then
      redis.call('HSET', record, 'state', 'failed', 'error', lost_error, 'ended_ms', whole(now))
      redis.call('EXPIRE', record, ttl_s)
      move(type, 'running', 'failed')
      redis.pcall('PUBLISH', done, id)
    else
      redis.call('HSET', record, 'state', 'queued')
      redis.call('LPUSH', prefix .. ':ready:' .. type, id)
      move(type, 'running', 'queued')
      redis.pcall('PUBLISH', wake, type)
    end
  end
end

-- one of each type in turn, so that a long queue of one does not hold up the others
local leased = {}
local found = true
while found and #leased < count do
  found = false
  for i = 3, #KEYS do
    local id = #leased < count and redis.call('LPOP', KEYS[i])
    if id then
      found = true
      local record = prefix .. ':job:' .. id
      local state, type, payload = unpack(redis.call('HMGET', record, 'state', 'type', 'payload'))
      if state == 'queued' then
        local attempt = redis.call('HINCRBY', record, 'attempt', 1)
        redis.call('HSET', record, 'state', 'running', 'started_ms', whole(now))
        redis.call('ZADD', running, whole(now + lease_ms), id)
        move(type, 'queued', 'running')
        leased[#leased + 1] = { id, attempt, type, payload }
      end
    end
  end
end
return leased
