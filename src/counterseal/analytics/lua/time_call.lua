-- time_call: adds one call of an endpoint to the measurements of a day
-- keys: endpoints
-- args: endpoint duration_us failed limit other ttl_s
-- returns: the calls of this endpoint today; beyond limit endpoints a new one is counted as other
-- ttl: endpoints by ttl_s, from the first call of the day
local endpoint, limit = ARGV[1], tonumber(ARGV[4])

-- each endpoint has three fields
if redis.call('HEXISTS', KEYS[1], 'calls:' .. endpoint) == 0 and redis.call('HLEN', KEYS[1]) >= 3 * limit then
  endpoint = ARGV[5]
end
local calls = redis.call('HINCRBY', KEYS[1], 'calls:' .. endpoint, 1)
redis.call('HINCRBY', KEYS[1], 'failures:' .. endpoint, ARGV[3])
redis.call('HINCRBY', KEYS[1], 'us:' .. endpoint, ARGV[2])

if redis.call('TTL', KEYS[1]) < 0 then
  redis.call('EXPIRE', KEYS[1], ARGV[6])
end
return calls
