-- refused: adds to the counts of those refused most in an hour
-- keys: counts
-- args: ttl_s most refused...
-- returns: 1; refused are a count and an identifier in turn
-- ttl: counts by ttl_s
for i = 3, #ARGV, 2 do
  redis.call('ZINCRBY', KEYS[1], ARGV[i], ARGV[i + 1])
end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -ARGV[2] - 1)
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
