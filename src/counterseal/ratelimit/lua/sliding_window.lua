-- sliding_window: charges counts of two windows in turn, of which the previous one fades out while the current one runs
-- keys: counters...
-- args: now_ms cost charge limits...
-- returns: the milliseconds from now_ms until it is allowed (0: it is), the number of the limit that decides, what remains of
--   that one, and when it is whole again; limits are a length in milliseconds, a count and a capacity in turn; charge is 1 or 0
-- ttl: each counter by twice the length of its window and a minute
--
-- What is used = current + previous * (the part of the current window that is still to come), as Cloudflare counts
-- ("How we built rate limiting capable of scaling to millions of domains", 2017). All is reckoned in tokens times
-- milliseconds, in whole numbers, so nothing is rounded.
local now, cost, charge = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'
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
  local per, count = tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2])
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
      redis.call('PEXPIRE', KEYS[i], 2 * ARGV[3 * i + 1] + 60000)
    end
  end
elseif charge then
  least = least - cost
  for i = 1, #KEYS do
    current[i] = current[i] + cost
    redis.call('SET', KEYS[i], string.format('%.0f %.0f %.0f', current[i], previous[i], now),
      'PX', 2 * ARGV[3 * i + 1] + 60000)
  end
end
local per = tonumber(ARGV[3 * which + 1])
local start = now - now % per
local reset = current[which] > 0 and start + 2 * per or previous[which] > 0 and start + per or now
return { wait > 0 and wait + now - ARGV[1] or 0, which, math.floor(math.max(least, 0)), reset }
