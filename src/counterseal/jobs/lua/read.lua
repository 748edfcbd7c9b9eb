-- read: what is known of jobs, as it stands at one moment
-- keys: queue
-- args: prefix parts...
-- returns: for each job its record, state entry, progress and why it shall be cancelled, each nil when there is none;
--   after 4 MB of records it stops, and tells of the first ones only
-- ttl: none
local prefix = ARGV[1]
local MOST_BYTES = 4 * 1024 * 1024
local found, bytes = {}, 0
for i = 2, #ARGV do
  local part = ARGV[i]
  local record = redis.call('GET', prefix .. ':job:' .. part)
  found[#found + 1] = {
    record,
    redis.call('HGET', prefix .. ':state', part),
    redis.call('GET', prefix .. ':progress:' .. part),
    redis.call('HGET', prefix .. ':cancel', part),
  }
  bytes = bytes + (record and #record or 0)
  if bytes > MOST_BYTES then
    break
  end
end
return found
