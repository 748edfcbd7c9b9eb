-- tally: adds amounts to the counts of an hour
-- keys: hour
-- args: ttl_s most other pairs...
-- returns: 1
-- ttl: hour by ttl_s, from its first count
local hour, ttl_s, most, other = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3]

for i = 4, #ARGV, 2 do
  local field = ARGV[i]
  if redis.call('HLEN', hour) >= most and redis.call('HEXISTS', hour, field) == 0 then
    field = other
  end
  redis.call('HINCRBYFLOAT', hour, field, ARGV[i + 1])
end

if redis.call('TTL', hour) < 0 then
  redis.call('EXPIRE', hour, ttl_s)
end
return 1
