-- token_bucket: takes tokens out of buckets that fill steadily up to their capacity
-- keys: buckets...
-- args: now_ms cost charge limits...
-- returns: the milliseconds from now_ms until it is allowed (0: it is), the number of the limit that decides, what remains of
--   that one, and when it is full again; limits are a length in milliseconds, a count and a capacity in turn; charge is 1 or 0
-- ttl: each bucket by the time it takes to fill and a minute
--
-- A level is kept in tokens times the length, so that a millisecond adds exactly `count` and nothing is rounded.
local now, cost, charge = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'
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
  local per, count, capacity = tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2]), tonumber(ARGV[3 * i + 3])
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
  return math.ceil((ARGV[3 * i + 3] * ARGV[3 * i + 1] - level[i]) / ARGV[3 * i + 2])
end

if wait > 0 then
  for i = 1, #KEYS do
    if redis.call('PTTL', KEYS[i]) == -1 then
      redis.call('PEXPIRE', KEYS[i], fill_ms(i) + 60000)
    end
  end
elseif charge then
  least = least - cost
  for i = 1, #KEYS do
    level[i] = level[i] - cost * ARGV[3 * i + 1]
    redis.call('SET', KEYS[i], string.format('%.0f %.0f', level[i], now), 'PX', fill_ms(i) + 60000)
  end
end
return { wait > 0 and wait + now - ARGV[1] or 0, which, math.floor(least), now + fill_ms(which) }
