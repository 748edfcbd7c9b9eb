-- fixed_window: charges counts of windows that begin at whole multiples of their length
-- keys: counters...
-- args: now_ms cost charge limits...
-- returns: the milliseconds from now_ms until it is allowed (0: it is), the number of the limit that decides, what remains of
--   that one, and when it is whole again; limits are a length in milliseconds, a count and a capacity in turn; charge is 1 or 0
-- ttl: each counter by the length of its window and a minute
local now, cost, charge = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'
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
  local per, count = tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2])
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
      redis.call('PEXPIRE', KEYS[i], ARGV[3 * i + 1] + 60000)
    end
  end
elseif charge then
  least = least - cost
  for i = 1, #KEYS do
    used[i] = used[i] + cost
    redis.call('SET', KEYS[i], string.format('%.0f %.0f', used[i], now), 'PX', ARGV[3 * i + 1] + 60000)
  end
end
local per = tonumber(ARGV[3 * which + 1])
return { wait > 0 and wait + now - ARGV[1] or 0, which, math.max(least, 0), used[which] > 0 and now - now % per + per or now }
