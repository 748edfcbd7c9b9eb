-- refund_gcra: moves theoretical arrival times back, at most to now
-- keys: times...
-- args: now_ms cost channel message limits...
-- returns: 1
-- ttl: each time by how far the TAT is ahead, and a minute
local cost = tonumber(ARGV[2])
for i = 1, #KEYS do
  local per, count = tonumber(ARGV[3 * i + 2]), tonumber(ARGV[3 * i + 3])
  local ahead, last = string.match(redis.call('GET', KEYS[i]) or '', '^(%d+) (%d+)$')
  if ahead then
    local now = math.max(tonumber(ARGV[1]), tonumber(last))
    ahead = math.max(0, math.max(0, ahead - (now - last) * count) - cost * per)
    redis.call('SET', KEYS[i], string.format('%d %d', ahead, now), 'PX', math.ceil(ahead / count) + 60000)
  end
end

-- A silent channel may not cost a refund: whoever misses the message asks again when it would anyway.
redis.pcall('PUBLISH', ARGV[3], ARGV[4])
return 1
