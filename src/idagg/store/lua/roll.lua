-- Merges windows' sketches into those of their hour and day. On the home shard.
--
-- ARGV[2]  the hour's start, s
-- ARGV[3]  how many sketches of the windows other shards do not have any more
-- ARGV[4]  how many unions of other shards' sketches of the windows are given
-- ARGV[5…] these; then the windows, members of TAG:rolling
--
-- Returns {rolled, gone}: how many of the windows were not in the hour yet, and how many sketches are missing in it for
-- them. Applied at most once, however often it is sent.

-- How long they are kept, s: 90 and 400 days.
local HOUR_KEPT_S, DAY_KEPT_S = 7776000, 34560000

local hour = ARGV[2]
local day = digits(hour - hour % 86400)
local windows, seconds, hits, unique, suspect, gone = {}, 0, 0, 0, 0, tonumber(ARGV[3])
for i = 5 + ARGV[4], #ARGV do
  local finish = redis.call('ZSCORE', key('rolling'), ARGV[i])
  if finish then
    local start, mask, its_hits, its_unique, is_suspect = string.match(ARGV[i], '^(%d+) (%x+) (%d+) (%d+) (%d)$')
    if start then
      seconds, hits, unique = seconds + finish - start, hits + its_hits, unique + its_unique
      suspect = math.max(suspect, tonumber(is_suspect))
      windows[#windows + 1] = {member = ARGV[i], name = key('w', start) .. ':hll', here = tonumber(mask, 16) % 2 == 1}
    else
      windows[#windows + 1] = {member = ARGV[i]}
    end
  end
end
if #windows == 0 then
  return {0, 0}
end

write_first()
local target = key('hour', hour)
local function merge(name)
  local answer = redis.call('EXISTS', name) == 1 and redis.pcall('PFMERGE', target, name)
  if not answer or answer.err then
    gone = gone + 1
  end
end
for i = 5, 4 + ARGV[4] do
  redis.call('SET', key('scratch'), ARGV[i])
  merge(key('scratch'))
end
redis.call('DEL', key('scratch'))
for _, window in ipairs(windows) do
  if window.here then
    merge(window.name)
  end
  redis.call('ZREM', key('rolling'), window.member)
end
if redis.call('EXISTS', target) == 1 then
  redis.call('EXPIRE', target, HOUR_KEPT_S)
  local hours = target
  target = key('day', day)
  merge(hours)
  redis.call('EXPIRE', target, DAY_KEPT_S)
end
for index, start in pairs({hours = hour, days = day}) do
  if not wrong_type(key(index), 'hash') then
    local sums = {string.match(redis.call('HGET', key(index), start) or '', '^(%d+) (%d+) (%d+) (%d+) (%d)$')}
    redis.call('HSET', key(index), start, string.format('%d %d %d %d %d', seconds + (sums[1] or 0), gone + (sums[2] or 0),
      hits + (sums[3] or 0), unique + (sums[4] or 0), math.max(suspect, sums[5] or 0)))
  end
end
return {#windows, gone}
