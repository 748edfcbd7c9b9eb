-- adopt: takes queued jobs out of their lanes, so that messages carry them
-- keys: queue
-- args: prefix now_ms look_ms parts...
-- returns: for each its record, or '' when it is not queued
-- ttl: none
local prefix, now, look_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local answers = {}
for i = 4, #ARGV do
  local part = ARGV[i]
  local record = redis.call('GET', prefix .. ':job:' .. part) or ''
  local priority, flow, queued = string.match(record, '^p[^\n]*\n([^\n]*)\n([^\n]*)\n[^\n]*\n(%d+)\n')
  local entry = redis.call('HGET', prefix .. ':state', part)
  if not priority or (entry and string.sub(entry, 1, 6) ~= 'queued') then
    answers[#answers + 1] = ''
  else
    redis.call('LREM', flow == '' and prefix .. ':ready:' .. priority or prefix .. ':lane:' .. priority .. ':' .. flow,
      0, part)
    if not entry then
      redis.call('HSET', prefix .. ':state', part, 'queued 0 0 0 ' .. queued)
    end
    redis.call('ZADD', prefix .. ':carried', string.format('%.0f', now + look_ms), part)
    answers[#answers + 1] = record
  end
end
return answers
