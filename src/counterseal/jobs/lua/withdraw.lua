-- withdraw: takes back a carried job that never began, because its message was refused
-- keys: queue
-- args: prefix part
-- returns: 1, or 0 when it began, ended, or is not there
-- ttl: a flow that rests by its period
local prefix, part = ARGV[1], ARGV[2]
local key, states = prefix .. ':job:' .. part, prefix .. ':state'

local record = redis.call('GET', key)
local state, token = string.match(redis.call('HGET', states, part) or '', '^(%a+) (%d+)')
if not record or token ~= '0' or (state ~= 'queued' and state ~= 'scheduled') then
  return 0
end
local type, extra = string.match(record, '^p([^\n]*)\n[^\n]*\n[^\n]*\n[^\n]*\n[^\n]*\n([^\n]*)\n')
if not type then
  return 0
end
local options = extra == '' and {} or cjson.decode(extra)
for name, of in pairs({ dedup = options.dedup, unique = options.unique }) do
  local held = prefix .. ':' .. name .. ':' .. of[1]
  if string.match(redis.call('GET', held) or '', '^%S+') == part then
    redis.call('DEL', held)
  end
end
for _, tag in ipairs(options.tags or {}) do
  redis.call('ZREM', prefix .. ':tag:' .. tag, part)
end
if options.flow then
  local of = prefix .. ':flow:' .. options.flow[1]
  local stalled, in0, in1, in2, period, left =
    unpack(redis.call('HMGET', of, 'stalled', 'in0', 'in1', 'in2', 'period_ms', 'running'))
  if not (stalled or in0 or in1 or in2) and tonumber(left or '0') <= 0 then
    redis.call('PEXPIRE', of, string.format('%.0f', tonumber(period or '0') + 60000))
  end
end
redis.call('DEL', key)
redis.call('HDEL', states, part)
redis.call('ZREM', prefix .. ':carried', part)
redis.call('HDEL', prefix .. ':messages', part)
redis.pcall('HINCRBY', prefix .. ':stats:' .. type, state, -1)
redis.pcall('XADD', prefix .. ':events', 'MAXLEN', '~', 2000, '*', 'left', part .. ' cancelled')
return 1
