-- claim: lets one loader of a missing value go ahead, over all processes
-- keys: value lease
-- args: token seen under now_ms lease_ms ttl_ms
-- returns: 'load'; 'changed' when what is stored is not what was seen; else the milliseconds until the lease ends
-- ttl: lease by ttl_ms
local token, seen, under = ARGV[1], ARGV[2], ARGV[3]
local now, lease_ms, ttl_ms = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]

-- "<token> <under> <until_ms> <judged_ms> <awaited>": under are the generations that the holder loads under, its kind's
-- and then <tag>=<generation> for each tag, with commas between; awaited is 1 once somebody waits to be told
local holder, holder_under, until_ms, judged_ms, awaited =
  string.match(redis.call('GET', KEYS[2]) or '', '^(%S+) (%S+) (%d+) (%d+) ([01])$')
if holder then
  now = math.max(now, tonumber(judged_ms))
end

local function keep(who, which, till, flag)
  local text = string.format('%s %s %.0f %.0f %s', who, which, till, now, flag)
  redis.call('SET', KEYS[2], text, 'PX', ttl_ms)
end

-- Whether something that both load under was cleared between the two. Other tags of the same value do not matter.
local function differ(one, other)
  local theirs = {}
  for name, generation in string.gmatch(one, ',([^=,]+)=([^,]+)') do
    theirs[name] = generation
  end
  for name, generation in string.gmatch(other, ',([^=,]+)=([^,]+)') do
    if theirs[name] and theirs[name] ~= generation then
      return true
    end
  end
  return string.match(one, '^[^,]+') ~= string.match(other, '^[^,]+')
end

if redis.call('GETRANGE', KEYS[1], 2, 17) ~= seen then
  return 'changed'
end
local left = holder and not differ(holder_under, under) and tonumber(until_ms) - now or 0
if left > 0 then
  keep(holder, holder_under, tonumber(until_ms), '1')
  return left
end
keep(token, under, now + lease_ms, holder and awaited or '0')
return 'load'
