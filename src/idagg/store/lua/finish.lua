-- Notes that all hours before a second are whole, and which of them, and of the days, are to be delivered. On the home shard.
--
-- ARGV[2]  the second: the start of an hour before which all windows are merged, or quarantined
-- ARGV[3…] what is to be delivered: hour, day
--
-- Returns 1; 0 where windows before it are not in their hour's sketch yet, and nothing was done.

local PERIODS = {{kind = 'hour', index = 'hours', length = 3600, kept = 7776000},
  {kind = 'day', index = 'days', length = 86400, kept = 34560000}}

local through = tonumber(ARGV[2])
local oldest = redis.call('ZRANGE', key('rolling'), 0, 0)[1]
if oldest and tonumber(string.match(oldest, '^%d+') or 0) < through then
  return 0
end
local before = tonumber(redis.call('HGET', key('state'), 'hours_through') or 0)
if through <= before then
  return 1
end
write_first()
redis.call('HSET', key('state'), 'hours_through', digits(through))
local wanted = {}
for i = 3, #ARGV do
  wanted[ARGV[i]] = true
end
for _, period in ipairs(PERIODS) do
  local sums = wrong_type(key(period.index), 'hash') and {} or redis.call('HGETALL', key(period.index))
  for i = 1, #sums, 2 do
    local start, finish = sums[i], (tonumber(sums[i]) or 0) + period.length
    if finish + period.kept < through then
      redis.call('HDEL', key(period.index), start)
    elseif wanted[period.kind] and finish > before and finish <= through then
      local gone, hits, most, suspect = string.match(sums[i + 1], '^%d+ (%d+) (%d+) (%d+) (%d)$')
      local unique = redis.pcall('PFCOUNT', key(period.kind, start))
      unique = math.min(type(unique) == 'number' and unique or 0, tonumber(most)) -- ids of two windows may be the same
      redis.call('ZADD', key('rollups'), digits(finish), string.format('%s %s %d %s %d %s', period.kind, start, unique, hits,
        math.max(suspect, math.min(gone, 1)), ARGV[1]))
    end
  end
end
return 1
