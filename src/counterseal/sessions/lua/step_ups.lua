-- step_ups: notes for display which second factors were shown in a live session
-- keys: entry
-- args: step_ups
-- returns: 1, or 0 when it is not live here
-- ttl: none is changed
local live = redis.call('HGET', KEYS[1], 'live')
if not live or live == 'r' then
  return 0
end
redis.call('HSET', KEYS[1], 'ups', ARGV[1])
return 1
