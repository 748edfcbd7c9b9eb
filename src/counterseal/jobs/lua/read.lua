-- read: what is known of jobs, as it stands at one moment
-- keys: queue
-- args: prefix parts...
-- returns: for each job its record, state entry, progress and why it shall be cancelled, each nil when there is none
-- ttl: none
local prefix = ARGV[1]
local found = {}
for i = 2, #ARGV do
  local part = ARGV[i]
  found[#found + 1] = {
    redis.call('GET', prefix .. ':job:' .. part),
    redis.call('HGET', prefix .. ':state', part),
    redis.call('GET', prefix .. ':progress:' .. part),
    redis.call('HGET', prefix .. ':cancel', part),
  }
end
return found
