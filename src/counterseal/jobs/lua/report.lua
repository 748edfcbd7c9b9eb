-- report: notes the progress of a running job and lines of its log, and tells whoever watches it
-- keys: queue
-- args: prefix part token progress keep_ms most lines...
-- returns: 1, or 0 when the lease is not this worker's any more, and nothing was noted
-- ttl: progress and logs by keep_ms from the last change; the end of the job shortens that of the logs
-- `progress` is '' or a JSON array of share, message and time; a line is a JSON array of time and text.
local prefix, part, token, progress, keep_ms, most = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])

local state, current = string.match(redis.call('HGET', prefix .. ':state', part) or '', '^(%a+) (%d+)')
if state ~= 'running' or current ~= token then
  return 0
end
local channel = prefix .. ':live:' .. part
if progress ~= '' then
  redis.call('SET', prefix .. ':progress:' .. part, progress, 'PX', keep_ms)
  redis.pcall('PUBLISH', channel, 'p' .. progress)
end
if #ARGV > 6 then
  local key = prefix .. ':logs:' .. part
  redis.call('RPUSH', key, unpack(ARGV, 7))
  redis.call('LTRIM', key, -most, -1)
  redis.call('PEXPIRE', key, keep_ms)
  redis.call('SADD', prefix .. ':logged', part)
  for i = 7, #ARGV do
    redis.pcall('PUBLISH', channel, 'l' .. ARGV[i])
  end
end
return 1
