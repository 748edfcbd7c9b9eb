-- note: notes that the message of a carried job was accepted, unless the job has ended meanwhile
-- keys: queue
-- args: prefix now_ms part message look_ms
-- returns: 1, or 0 when nobody has to look after the job any more
-- ttl: none
local prefix, now, part, message, look_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], tonumber(ARGV[5])
local code = redis.call('GETRANGE', prefix .. ':job:' .. part, 0, 0)
if code ~= 'p' then
  redis.call('ZREM', prefix .. ':carried', part)
  redis.call('HDEL', prefix .. ':messages', part)
  return 0
end
local state, ms = string.match(redis.call('HGET', prefix .. ':state', part) or '', '^(%a+) %d+ %d+ %d+ (%d+)')
local from = state == 'running' and now or math.max(now, tonumber(ms or '0'))
redis.call('ZADD', prefix .. ':carried', string.format('%.0f', from + look_ms), part)
redis.call('HSET', prefix .. ':messages', part, message)
return 1
