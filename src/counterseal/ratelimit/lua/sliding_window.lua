-- sliding_window: charges counts of two windows in turn, of which the previous one fades out while the current one runs
-- keys: counters...
-- args: now_ms cost limits...
-- returns: what remains of it, times its length, when there is one limit and it allows; else the
--   milliseconds from now_ms until they allow it (0: they do), the number of the limit that decides, what remains of
--   that one, and when it is whole again; limits are a length in milliseconds and a count in turn; of a
--   cost below 0 it only tells what it would be
-- ttl: each counter by twice the length of its window and a minute
--
-- What is used = current + previous * (the part of the current window that is still to come), as Cloudflare counts
-- ("How we built rate limiting capable of scaling to millions of domains", 2017). All is reckoned in tokens times
-- milliseconds, in whole numbers, so nothing is rounded.
local now, cost = tonumber(ARGV[1]), tonumber(ARGV[2])

-- The common case by itself, because it is half as long: one limit, and it allows.
if #KEYS == 1 and cost > 0 then
  local per, count = tonumber(ARGV[3]), tonumber(ARGV[4])
  local c, p, l = string.match(redis.call('GET', KEYS[1]) or '0 0 0', '^(%d+) (%d+) (%d+)$')
  local current, previous, last = tonumber(c), tonumber(p), tonumber(l)
  if last and last <= now then
    local start = now - now % per
    if last < start then
      current, previous = 0, last >= start - per and current or 0
    end
    current = current + cost
    local room = (count - current) * per - previous * (start + per - now)
    if room >= 0 then
      redis.call('SET', KEYS[1], string.format('%d %d %d', current, previous, now), 'PX', 2 * per + 60000)
      return room
    end
  end
end

local charge = cost > 0
cost = math.abs(cost)
local current, previous, last = {}, {}, {}

for i = 1, #KEYS do
  local state = redis.call('GET', KEYS[i])
  local c, p, l = string.match(state or '', '^(%d+) (%d+) (%d+)$')
  current[i], previous[i], last[i] = tonumber(c or 0), tonumber(p or 0), tonumber(l or 0)
  if last[i] > now then
    now = last[i]
  end
end

local wait, which, least = 0, 1, math.huge
for i = 1, #KEYS do
  local per, count = tonumber(ARGV[2 * i + 1]), tonumber(ARGV[2 * i + 2])
  local left = per - now % per
  local start = now + left - per
  if last[i] < start then
    previous[i] = last[i] >= start - per and current[i] or 0
    current[i] = 0
  end
  local c, p = current[i], previous[i]
  local room = ((count - c) * per - p * left) / per
  if room < cost then
    local later
    if c + cost <= count then
      later = left - math.floor((count - c - cost) * per / p)
    else
      later = left + per - math.floor((count - cost) * per / c)
    end
    if later > wait then
      wait, which, least = later, i, room
    end
  elseif wait == 0 and room < least then
    which, least = i, room
  end
end

if wait > 0 then
  for i = 1, #KEYS do
    if redis.call('PTTL', KEYS[i]) == -1 then
      redis.call('PEXPIRE', KEYS[i], 2 * ARGV[2 * i + 1] + 60000)
    end
  end
elseif charge then
  least = least - cost
  for i = 1, #KEYS do
    current[i] = current[i] + cost
    redis.call('SET', KEYS[i], string.format('%d %d %d', current[i], previous[i], now),
      'PX', 2 * ARGV[2 * i + 1] + 60000)
  end
end
local per = tonumber(ARGV[2 * which + 1])
local start = now - now % per
local reset = current[which] > 0 and start + 2 * per or previous[which] > 0 and start + per or now
wait = wait > 0 and wait + now - ARGV[1] or 0
return { wait, which, math.floor(math.max(least, 0)), reset }
