-- schedule_write: writes and removes schedules, all of them or none
-- keys: schedules next
-- args: channel field expected value items...
-- returns: 1, or 0 when something has changed since it was read; nothing was written then
-- ttl: none, both keys are configuration
-- `field` may be '', else it must hold `expected` ('' for absent) and then holds `value`. Each item is four arguments:
-- the id; the head of the entry as it was read, or '' for absent, or * for whatever is there; the entry,
-- '' to remove it; when it is due, '' for never.
local channel, field, expected, value = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if field ~= '' and (redis.call('HGET', KEYS[1], field) or '') ~= expected then
  return 0
end
for i = 5, #ARGV, 4 do
  local entry, head = redis.call('HGET', KEYS[1], ARGV[i]), ARGV[i + 1]
  if head == '' then
    if entry then
      return 0
    end
  elseif head ~= '*' and (not entry or entry:sub(1, #head + 1) ~= head .. '\n') then
    return 0
  end
end
if field ~= '' then
  redis.call('HSET', KEYS[1], field, value)
end
for i = 5, #ARGV, 4 do
  local id, entry, due = ARGV[i], ARGV[i + 2], ARGV[i + 3]
  if entry == '' then
    redis.call('HDEL', KEYS[1], id)
  else
    redis.call('HSET', KEYS[1], id, entry)
  end
  if due == '' then
    redis.call('ZREM', KEYS[2], id)
  else
    redis.call('ZADD', KEYS[2], due, id)
  end
end
if #ARGV > 4 then
  redis.pcall('PUBLISH', channel, '') -- a silent channel may not cost a change: schedulers look by themselves as well
end
return 1
