-- refund_token_bucket: puts tokens back into buckets, up to their capacity
-- keys: buckets...
-- args: now_ms cost channel message limits...
-- returns: 1
-- ttl: each bucket by the time it takes to fill and a minute
local cost = tonumber(ARGV[2])
for i = 1, #KEYS do
  local per, count, capacity = tonumber(ARGV[3 * i + 2]), tonumber(ARGV[3 * i + 3]), tonumber(ARGV[3 * i + 4])
  local level, last = string.match(redis.call('GET', KEYS[i]) or '', '^(%d+) (%d+)$')
  if level then
    local now = math.max(tonumber(ARGV[1]), tonumber(last))
    level = math.min(capacity * per, math.min(capacity * per, level + (now - last) * count) + cost * per)
    redis.call('SET', KEYS[i], string.format('%d %d', level, now),
      'PX', math.ceil((capacity * per - level) / count) + 60000)
  end
end

-- A silent channel may not cost a refund: whoever misses the message asks again when it would anyway.
redis.pcall('PUBLISH', ARGV[3], ARGV[4])
return 1
