-- unpark: puts parked jobs of a type back to their queue, for a worker that can run them
-- keys: queue
-- args: prefix now_ms type schema count
-- returns: how many went back; `count` says at most how many
-- ttl: none
local prefix, now, type, schema, count = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local of, states = prefix .. ':parked:' .. type, prefix .. ':state'

local parts = redis.call('ZRANGEBYSCORE', of, '-inf', schema, 'LIMIT', 0, count)
if #parts == 0 then
  return 0
end
local stored = redis.call('HGET', KEYS[1], 'time')
if stored and tonumber(stored) > now then
  now = tonumber(stored)
end
local now_text = string.format('%.0f', now)
local back = 0
for _, part in ipairs(parts) do
  redis.call('ZREM', of, part)
  redis.call('ZREM', prefix .. ':parked', part)
  local record = redis.call('GET', prefix .. ':job:' .. part)
  local state, token, attempt, lost = string.match(redis.call('HGET', states, part) or '', '^(%a+) (%d+) (%d+) (%d+)')
  if record and state == 'parked' then
    local priority, flow, extra = string.match(record, '^.[^\n]*\n([^\n]*)\n([^\n]*)\n[^\n]*\n[^\n]*\n([^\n]*)\n')
    redis.call('HSET', states, part, 'queued ' .. token .. ' ' .. attempt .. ' ' .. lost .. ' ' .. now_text)
    if flow == '' then
      if redis.call('RPUSH', prefix .. ':ready:' .. priority, part) == 1 then
        redis.call('RPUSH', prefix .. ':ring:' .. priority, '')
      end
    else
      redis.call('RPUSH', prefix .. ':lane:' .. priority .. ':' .. flow, part)
      local key = prefix .. ':flow:' .. flow
      if redis.call('HEXISTS', key, 'period_ms') == 0 then -- its limits are forgotten while it rests
        local limits = cjson.decode(extra).flow
        redis.call('HSET', key, 'parallelism', limits[2], 'rate', limits[3], 'period_ms', limits[4])
      end
      local member, stalled = unpack(redis.call('HMGET', key, 'in' .. priority, 'stalled'))
      if not member and not stalled then
        redis.call('HSET', key, 'in' .. priority, 1)
        redis.call('PERSIST', key)
        redis.call('RPUSH', prefix .. ':ring:' .. priority, flow)
      end
    end
    back = back + 1
  end
end
if back > 0 then
  redis.pcall('HINCRBY', prefix .. ':stats:' .. type, 'retrying', -back)
  redis.pcall('HINCRBY', prefix .. ':stats:' .. type, 'queued', back)
  redis.pcall('PUBLISH', prefix .. ':wake', '')
end
return back
