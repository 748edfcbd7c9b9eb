-- read: what is known of jobs, as it stands at one moment
-- keys: queue
-- args: prefix now_ms parts...
-- returns: for each job its record, state entry, progress, why it shall be cancelled, each nil when there is none, the
--   time that its end is judged by, and of one that has not ended who holds the unique key that it asked for; after
--   4 MB of records it stops, and tells of the first ones only
-- ttl: none
local prefix, now = ARGV[1], tonumber(ARGV[2])
local MOST_BYTES = 4 * 1024 * 1024
local found, bytes = {}, 0
local time = redis.call('HGET', KEYS[1], 'time')
if time and tonumber(time) > now then
  now = tonumber(time)
end
for i = 3, #ARGV do
  local part = ARGV[i]
  local record = redis.call('GET', prefix .. ':job:' .. part)
  local unique = string.match(record or '', '^p[^\n]*\n[^\n]*\n[^\n]*\n([^\n]+)\n')
  found[#found + 1] = {
    record,
    redis.call('HGET', prefix .. ':state', part),
    redis.call('GET', prefix .. ':progress:' .. part),
    redis.call('HGET', prefix .. ':cancel', part),
    now,
    unique and redis.call('GET', prefix .. ':unique:' .. unique),
  }
  bytes = bytes + (record and #record or 0)
  if bytes > MOST_BYTES then
    break
  end
end
return found
