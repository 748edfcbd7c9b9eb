-- cancel: ends a job that has not begun, or asks the worker of one that runs to end it
-- keys: queue
-- args: prefix now_ms part reason keep_ms
-- returns: `cancelled`, `asked` when it runs, the state of a job that has ended, or nil when there is none
-- ttl: a record that ends here, with its logs, a second after keep_ms; recent 30 days; rates 2 days; a flow that rests
--   by its period
local prefix, now, part, reason, keep_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local key, states = prefix .. ':job:' .. part, prefix .. ':state'

local stored = redis.call('HGET', KEYS[1], 'time')
if stored and tonumber(stored) > now then
  now = tonumber(stored)
end
local record = redis.call('GET', key)
if not record then
  if redis.call('HEXISTS', states, part) == 1 then -- somebody has deleted it
    redis.call('HINCRBY', KEYS[1], 'uncounted', 0)
  end
  return nil
end
local code, type, _, flow, unique = string.match(record, '^(.)([^\n]*)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n')
if code ~= 'p' then
  local ended, keep = string.match(record, '^' .. string.rep('[^\n]*\n', 7) .. '%d+ %d+ %d+ %d+ (%d+) %d+ (%d+)\n')
  if keep and ended + keep <= now then
    return nil -- it is kept no more
  end
  return ({ c = 'completed', f = 'failed', x = 'cancelled' })[code]
end
local entry = redis.call('HGET', states, part) or 'queued 0 0 0 0'
local state, token, attempt, lost, ms = string.match(entry, '^(%a+) (%d+) (%d+) (%d+) (%d+)')
if state == 'running' then
  redis.call('HSET', prefix .. ':cancel', part, reason)
  redis.pcall('PUBLISH', prefix .. ':control', part .. ' ' .. token .. ' ' .. reason)
  return 'asked'
end

local now_text = string.format('%.0f', now)
-- Its place in a lane stays, and is passed over, also when its record is kept no more.
if state == 'queued' and not redis.call('ZSCORE', prefix .. ':carried', part) then
  redis.call('SADD', prefix .. ':left', part)
end
redis.call('SET', key, 'x' .. string.sub(record, 2) .. '\n' .. token .. ' ' .. attempt .. ' ' .. lost .. ' '
  .. (state == 'running' and ms or '0') .. ' ' .. now_text .. ' 0 ' .. keep_ms .. '\n' .. reason,
  'PX', string.format('%.0f', keep_ms + 1000))
redis.call('HDEL', states, part)
redis.call('PEXPIRE', prefix .. ':logs:' .. part, keep_ms)
redis.call('SREM', prefix .. ':logged', part)
if unique ~= '' and string.match(redis.call('GET', prefix .. ':unique:' .. unique) or '', '^%S+') == part then
  redis.call('DEL', prefix .. ':unique:' .. unique)
end
local counted, woken = state, false
if state == 'parked' then
  redis.call('ZREM', prefix .. ':parked', part)
  redis.call('ZREM', prefix .. ':parked:' .. type, part)
  counted = 'retrying'
elseif state == 'scheduled' or state == 'retrying' then
  redis.call('ZREM', prefix .. ':delayed', part)
  if state == 'retrying' then
    redis.call('HINCRBY', KEYS[1], 'retrying', -1)
    woken = true -- it may have held up a strict queue
  end
end
if flow ~= '' then -- it is forgotten when it has nothing that waits in a lane or runs
  local of = prefix .. ':flow:' .. flow
  local stalled, in0, in1, in2, period, left =
    unpack(redis.call('HMGET', of, 'stalled', 'in0', 'in1', 'in2', 'period_ms', 'running'))
  if not (stalled or in0 or in1 or in2) and tonumber(left or '0') <= 0 then
    redis.call('PEXPIRE', of, string.format('%.0f', tonumber(period or '0') + 60000))
  end
end
-- Neither broken statistics nor a silent channel may keep a job alive.
redis.pcall('HINCRBY', prefix .. ':stats:' .. type, counted, -1)
redis.pcall('HINCRBY', prefix .. ':stats:' .. type, 'cancelled', 1)
local hour = prefix .. ':rate:' .. math.floor(now / 3600000)
redis.pcall('HINCRBY', hour, math.floor(now / 60000) % 60 .. ':' .. type .. ':cancelled', 1)
redis.pcall('PEXPIRE', hour, 172800000, 'NX')
redis.pcall('LPUSH', prefix .. ':recent', part)
redis.pcall('LTRIM', prefix .. ':recent', 0, 9999)
redis.pcall('PEXPIRE', prefix .. ':recent', 2592000000)
redis.pcall('PUBLISH', prefix .. ':ended', part .. ' cancelled')
redis.pcall('XADD', prefix .. ':events', 'MAXLEN', '~', 2000, '*', 'left', part .. ' cancelled')
if woken then
  redis.pcall('PUBLISH', prefix .. ':wake', '')
end
return 'cancelled'
