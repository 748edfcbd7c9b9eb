-- count: adds one event of a signature request to the counters of a day
-- keys: counters requests users
-- args: event request user domain ttl_s
-- returns: 1
-- ttl: each by ttl_s, from the first event of the day
local event, domain, ttl_s = ARGV[1], ARGV[4], ARGV[5]

redis.call('HINCRBY', KEYS[1], event, 1)
if domain ~= '' then
  redis.call('HINCRBY', KEYS[1], event .. ':' .. domain, 1)
end
redis.call('PFADD', KEYS[2], ARGV[2])
redis.call('PFADD', KEYS[3], ARGV[3])

for _, key in ipairs(KEYS) do
  if redis.call('TTL', key) < 0 then
    redis.call('EXPIRE', key, ttl_s)
  end
end
return 1
