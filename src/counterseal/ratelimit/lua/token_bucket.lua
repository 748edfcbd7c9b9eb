-- token_bucket: takes tokens out of buckets that fill steadily up to their capacity
-- keys: buckets...
-- args: now_ms cost limits...
-- returns: what remains of it, times its length, when there is one limit and it allows; else the
--   milliseconds from now_ms until they allow it (0: they do), the number of the limit that decides, what remains of
--   that one, and when it is whole again; limits are a length in milliseconds, a count and a capacity in turn; of a
--   cost below 0 it only tells what it would be
-- ttl: each bucket by the time it takes to fill and a minute
--
-- A level is kept in tokens times the length, so that a millisecond adds exactly `count` and nothing is rounded.
local now, cost = tonumber(ARGV[1]), tonumber(ARGV[2])

-- The common case by itself, because it is half as long: one limit, and it allows.
if #KEYS == 1 and cost > 0 then
  local per, count, capacity = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
  local full = capacity * per
  local v, l = string.match(redis.call('GET', KEYS[1]) or string.format('%d 0', full), '^(%d+) (%d+)$')
  local level, last = tonumber(v), tonumber(l)
  if last and last <= now then
    level = math.min(full, level + (now - last) * count) - cost * per
    if level >= 0 then
      redis.call('SET', KEYS[1], string.format('%d %d', level, now),
        'PX', math.ceil((full - level) / count) + 60000)
      return level
    end
  end
end

local charge = cost > 0
cost = math.abs(cost)
local level, last = {}, {}

for i = 1, #KEYS do
  local state = redis.call('GET', KEYS[i])
  local v, l = string.match(state or '', '^(%d+) (%d+)$')
  level[i], last[i] = tonumber(v), tonumber(l or 0)
  if last[i] > now then
    now = last[i]
  end
end

local wait, which, least = 0, 1, math.huge
for i = 1, #KEYS do
  local per, count, capacity = tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2])
  local full = capacity * per
  level[i] = level[i] and math.min(full, level[i] + (now - last[i]) * count) or full
  local room = level[i] / per
  if room < cost then
    local later = math.ceil((cost * per - level[i]) / count)
    if later > wait then
      wait, which, least = later, i, room
    end
  elseif wait == 0 and room < least then
    which, least = i, room
  end
end

local function fill_ms(i)
  return math.ceil((ARGV[3 * i + 2] * ARGV[3 * i] - level[i]) / ARGV[3 * i + 1])
end

if wait > 0 then
  -- A key may have been written under a higher count, by which it would fill sooner.
  for i = 1, #KEYS do
    local need, left = fill_ms(i), redis.call('PTTL', KEYS[i])
    if left ~= -2 and left < need then
      redis.call('PEXPIRE', KEYS[i], need + 60000)
    end
  end
elseif charge then
  least = least - cost
  for i = 1, #KEYS do
    level[i] = level[i] - cost * ARGV[3 * i]
    redis.call('SET', KEYS[i], string.format('%d %d', level[i], now), 'PX', fill_ms(i) + 60000)
  end
end
wait = wait > 0 and wait + now - ARGV[1] or 0
return { wait, which, math.floor(least), now + fill_ms(which) }
