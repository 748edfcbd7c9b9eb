-- refund_sliding_log: takes the newest entries out of a log, up to a cost
-- keys: logs...
-- args: now_ms cost channel message limits...
-- returns: 1
-- ttl: each log keeps the one it has
for i = 1, #KEYS do
  local cost = tonumber(ARGV[2])
  while cost > 0 do
    local t, c, s = string.match(redis.call('LINDEX', KEYS[i], -1) or '', '^(%d+) (%d+) (%d+)$')
    if not t then
      break
    end
    local back = math.min(cost, tonumber(c))
    if back < tonumber(c) then
      redis.call('LSET', KEYS[i], -1, string.format('%s %d %d', t, c - back, s - back))
    else
      redis.call('RPOP', KEYS[i])
    end
    cost = cost - back
  end
end

-- A silent channel may not cost a refund: whoever misses the message asks again when it would anyway.
redis.pcall('PUBLISH', ARGV[3], ARGV[4])
return 1
