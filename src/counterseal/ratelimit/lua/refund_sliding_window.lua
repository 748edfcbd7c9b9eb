-- refund_sliding_window: gives back what was charged in the windows that run now
-- keys: counters...
-- args: now_ms cost channel message limits...
-- returns: 1
-- ttl: each counter by twice the length of its window and a minute
local cost = tonumber(ARGV[2])
for i = 1, #KEYS do
  local per = tonumber(ARGV[2 * i + 3])
  local current, previous, last = string.match(redis.call('GET', KEYS[i]) or '', '^(%d+) (%d+) (%d+)$')
  if current then
    local now = math.max(tonumber(ARGV[1]), tonumber(last))
    if tonumber(last) >= now - now % per then
      current = math.max(0, current - cost)
      redis.call('SET', KEYS[i], string.format('%d %s %d', current, previous, now), 'PX', 2 * per + 60000)
    end
  end
end

-- A silent channel may not cost a refund: whoever misses the message asks again when it would anyway.
redis.pcall('PUBLISH', ARGV[3], ARGV[4])
return 1
