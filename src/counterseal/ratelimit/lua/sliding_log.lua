-- sliding_log: charges a log of every call of the last period
-- keys: logs...
-- args: now_ms cost limits...
-- returns: what remains of it, when there is one limit and it allows; else the
--   milliseconds from now_ms until they allow it (0: they do), the number of the limit that decides, what remains of
--   that one, and when it is whole again; limits are a length in milliseconds and a count in turn; of a
--   cost below 0 it only tells what it would be
-- ttl: each log by its period and a minute
--
-- An entry is its time, its cost, and the sum of all costs up to it: so the two ends of a log tell what is used, and
-- the entry that has to end before there is room is found by halving.
local now, cost = tonumber(ARGV[1]), tonumber(ARGV[2])

local charge = cost > 0
cost = math.abs(cost)
local time, sum = {}, {}

local function entry(key, index)
  local t, c, s = string.match(redis.call('LINDEX', key, index) or '', '^(%d+) (%d+) (%d+)$')
  return tonumber(t), tonumber(c), tonumber(s)
end

-- the position of the first entry that fits, by ever larger steps from the oldest and then by halving
local function first(key, fits)
  local size, low, step = redis.call('LLEN', key), 0, 1
  while low + step <= size and not fits(entry(key, low + step - 1)) do
    low, step = low + step, 2 * step
  end
  local high = math.min(size, low + step - 1)
  while low < high do
    local middle = math.floor((low + high) / 2)
    if fits(entry(key, middle)) then
      high = middle
    else
      low = middle + 1
    end
  end
  return low
end

for i = 1, #KEYS do
  local t, _, s = entry(KEYS[i], -1)
  time[i], sum[i] = t or 0, s or 0
  if time[i] > now then
    now = time[i]
  end
end

local used = {}
local wait, which, least = 0, 1, math.huge
for i = 1, #KEYS do
  local key, per, count = KEYS[i], tonumber(ARGV[2 * i + 1]), tonumber(ARGV[2 * i + 2])
  used[i] = 0
  if time[i] + per > now then
    local t, c, s = entry(key, 0)
    if t + per <= now then
      local ended = first(key, function(at)
        return at + per > now
      end)
      local _
      _, c, s = entry(key, ended)
      if charge then
        redis.call('LTRIM', key, ended, -1)
      end
    end
    used[i] = sum[i] - s + c
  end
  local room = count - used[i]
  if room < cost then
    local enough = sum[i] - used[i] + cost - room
    local at = entry(key, first(key, function(_, _, s)
      return s >= enough
    end))
    if at + per - now > wait then
      wait, which, least = at + per - now, i, room
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
    local key = KEYS[i]
    if used[i] == 0 then
      redis.call('DEL', key)
      redis.call('RPUSH', key, string.format('%d %d %d', now, cost, cost))
    elseif time[i] == now then
      local _, c, s = entry(key, -1)
      redis.call('LSET', key, -1, string.format('%d %d %d', now, c + cost, s + cost))
    else
      redis.call('RPUSH', key, string.format('%d %d %d', now, cost, sum[i] + cost))
    end
    redis.call('PEXPIRE', key, ARGV[2 * i + 1] + 60000)
    used[i], time[i] = used[i] + cost, now
  end
end
if #KEYS == 1 and charge and wait == 0 and now == tonumber(ARGV[1]) then
  return least
end
wait = wait > 0 and wait + now - ARGV[1] or 0
return { wait, which, math.max(least, 0), used[which] > 0 and time[which] + ARGV[2 * which + 1] or now }
