-- fixed_window: charges counts of windows that begin at whole multiples of their length
-- keys: counters...
-- args: now_ms cost limits...
-- returns: what remains of it, when there is one limit and it allows; else the
--   milliseconds from now_ms until they allow it (0: they do), the number of the limit that decides, what remains of
--   that one, and when it is whole again; limits are a length in milliseconds and a count in turn; of a
--   cost below 0 it only tells what it would be
-- ttl: each counter by the length of its window and a minute
local now, cost = tonumber(ARGV[1]), tonumber(ARGV[2])

-- The common case by itself, because it is half as long: one limit, and it allows.
if #KEYS == 1 and cost > 0 then
  local per, count = tonumber(ARGV[3]), tonumber(ARGV[4])
  local u, l = string.match(redis.call('GET', KEYS[1]) or '0 0', '^(%d+) (%d+)$')
  local used, last = tonumber(u), tonumber(l)
  if last and last <= now then
    used = cost + (last >= now - now % per and used or 0)
    if used <= count then
      redis.call('SET', KEYS[1], string.format('%d %d', used, now), 'PX', per + 60000)
      return count - used
    end
  end
end

local charge = cost > 0
cost = math.abs(cost)
local used, last = {}, {}

for i = 1, #KEYS do
  local state = redis.call('GET', KEYS[i])
  local u, l = string.match(state or '', '^(%d+) (%d+)$')
  used[i], last[i] = tonumber(u or 0), tonumber(l or 0)
  if last[i] > now then
    now = last[i]
  end
end

local wait, which, least = 0, 1, math.huge
for i = 1, #KEYS do
  local per, count = tonumber(ARGV[2 * i + 1]), tonumber(ARGV[2 * i + 2])
  local start = now - now % per
  if last[i] < start then
    used[i] = 0
  end
  local room = count - used[i]
  if room < cost then
    if start + per - now > wait then
      wait, which, least = start + per - now, i, room
    end
  elseif wait == 0 and room < least then
    which, least = i, room
  end
end

if wait > 0 then
  for i = 1, #KEYS do
    if redis.call('PTTL', KEYS[i]) == -1 then
      redis.call('PEXPIRE', KEYS[i], ARGV[2 * i + 1] + 60000)
    end
  end
elseif charge then
  least = least - cost
  for i = 1, #KEYS do
    used[i] = used[i] + cost
    redis.call('SET', KEYS[i], string.format('%d %d', used[i], now), 'PX', ARGV[2 * i + 1] + 60000)
  end
end
local per = tonumber(ARGV[2 * which + 1])
wait = wait > 0 and wait + now - ARGV[1] or 0
return { wait, which, math.max(least, 0), used[which] > 0 and now - now % per + per or now }
