-- refund_fixed_window: gives back what was charged in the windows that run now
-- keys: counters...
-- args: now_ms cost channel message limits...
-- returns: 1
-- ttl: each counter by the length of its window and a minute
local cost = tonumber(ARGV[2])
for i = 1, #KEYS do
  local per = tonumber(ARGV[2 * i + 3])
  local used, last = string.match(redis.call('GET', KEYS[i]) or '', '^(%d+) (%d+)$')
  if used then
    local now = math.max(tonumber(ARGV[1]), tonumber(last))
    if tonumber(last) >= now - now % per then
      used = math.max(0, used - cost)
      redis.call('SET', KEYS[i], string.format('%d %d', used, now), 'PX', per + 60000)
    end
  end
end

-- A silent channel may not cost a refund: whoever misses the message asks again when it would anyway.
redis.pcall('PUBLISH', ARGV[3], ARGV[4])
return 1
