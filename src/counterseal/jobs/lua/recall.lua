-- recall: gives back the jobs of a lease call whose answer got lost, uncounted as attempts
-- keys: queue
-- args: prefix now_ms worker call
-- returns: how many went back to their queue
-- ttl: that the call was recalled is known for 5 minutes, should it come only now
local prefix, now, worker, call = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local key, states = prefix .. ':held:' .. worker, prefix .. ':state'
local words = {}
for word in string.gmatch(redis.call('GET', key) or '', '%S+') do
  words[#words + 1] = word
end
redis.call('SET', key, call, 'PX', 300000)
if words[1] ~= call then
  return 0
end

local stored = redis.call('HGET', KEYS[1], 'time')
if stored and tonumber(stored) > now then
  now = tonumber(stored)
end
local now_text = string.format('%.0f', now)
local back = 0
for i = #words - 1, 2, -2 do -- the first one goes to the front last
  local part, token = words[i], words[i + 1]
  local record = redis.call('GET', prefix .. ':job:' .. part)
  local state, current, attempt, lost, started, error =
    string.match(redis.call('HGET', states, part) or '', '^(%a+) (%d+) (%d+) (%d+) (%d+)(.*)$')
  local held = record and state == 'running' and current == token
  if held and redis.call('HEXISTS', prefix .. ':cancel', part) == 1 then
    redis.call('ZADD', prefix .. ':running', 0, part) -- the next lease ends it
  elseif held then
    local type, priority, flow = string.match(record, '^.([^\n]*)\n([^\n]*)\n([^\n]*)\n')
    redis.call('ZREM', prefix .. ':running', part)
    redis.call('HSET', states, part,
      'queued ' .. token .. ' ' .. (attempt - 1) .. ' ' .. lost .. ' ' .. now_text .. error)
    if flow == '' then
      if redis.call('LPUSH', prefix .. ':ready:' .. priority, part) == 1 then
        redis.call('RPUSH', prefix .. ':ring:' .. priority, '')
      end
    else
      redis.call('LPUSH', prefix .. ':lane:' .. priority .. ':' .. flow, part)
      local of = prefix .. ':flow:' .. flow
      redis.call('HINCRBY', of, 'running', -1)
      if tonumber(started) >= tonumber(redis.call('HGET', of, 'start_ms') or '0') then -- of the period that still is
        redis.call('HINCRBY', of, 'used', -1)
      end
      if redis.call('HGET', of, 'stalled') == 'full' then
        redis.call('HDEL', of, 'stalled')
        redis.call('ZREM', prefix .. ':flowdue', flow)
      end
      for other = 0, 2 do
        local member, stalled = unpack(redis.call('HMGET', of, 'in' .. other, 'stalled'))
        if not member and not stalled and redis.call('EXISTS', prefix .. ':lane:' .. other .. ':' .. flow) == 1 then
          redis.call('HSET', of, 'in' .. other, 1)
          redis.call('RPUSH', prefix .. ':ring:' .. other, flow)
        end
      end
    end
    redis.pcall('HINCRBY', prefix .. ':stats:' .. type, 'running', -1)
    redis.pcall('HINCRBY', prefix .. ':stats:' .. type, 'queued', 1)
    back = back + 1
  end
end
if back > 0 then
  redis.pcall('PUBLISH', prefix .. ':wake', '')
end
return back
