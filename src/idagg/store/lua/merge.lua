-- Makes the record of a window, the sum of all shards' parts, and a pending delivery of it.
--
-- On the home shard, whose part goes. Applied at most once, however often it is sent.
--
-- ARGV[2]  the window's start, s
-- ARGV[3]  its length, s
-- ARGV[4]  unique ids; ARGV[5] their estimate; ARGV[6] hits
-- ARGV[7]  1 where the count is exact, else 0; ARGV[8] the same, suspect
-- ARGV[9]  hits whose endpoint was over the limit
-- ARGV[10] for how long the record is kept to be read back, s; 0: it is not
-- ARGV[11] the shards that have a sketch of it, a bit mask in hexadecimal
--
-- Returns {1}; {0} where the window has been merged before; or {-1, start, what}: for what reason it cannot be.

-- Windows merged last, of which late parts are known for what they are; some 50 KB.
local MERGED_KEPT = 1024

-- Keeps the record, and forgets hours that have expired. What another program has put in its place stays, and the window
-- is delivered all the same.
local function keep(start, text, keep_s)
  local hours, kept = key('kept'), kept_in(start)
  if wrong_type(hours, 'zset') or wrong_type(kept, 'hash') then
    return
  end
  redis.call('HSET', kept, start, text)
  redis.call('EXPIRE', kept, keep_s)
  local hour = digits(start - start % 3600)
  redis.call('ZADD', hours, hour, hour)
  for _, oldest in ipairs(redis.call('ZRANGE', hours, 0, 1)) do
    if redis.call('EXISTS', key('kept', oldest)) == 0 then
      redis.call('ZREM', hours, oldest)
    end
  end
end

-- For how long seal.lua keeps a window's sketch, s.
local SKETCH_KEPT_S = 172800

-- Notes where the window's sketches are, and that they are to be rolled up.
local function note_sketches(start, finish)
  local sketches, rolling = key('sketches'), key('rolling')
  if wrong_type(sketches, 'zset') or wrong_type(rolling, 'zset') then
    return
  end
  local member = start .. ' ' .. ARGV[11]
  redis.call('ZADD', sketches, finish, member)
  redis.call('ZADD', rolling, finish, string.format('%s %s %s %s', member, ARGV[6], ARGV[4], ARGV[8]))
  local now_s = now_us() / 1000000
  local oldest = redis.call('ZRANGE', sketches, 0, 1, 'WITHSCORES')
  for i = 1, #oldest, 2 do
    if oldest[i + 1] + SKETCH_KEPT_S < now_s then
      redis.call('ZREM', sketches, oldest[i])
    end
  end
end

local start, part, record = ARGV[2], key('part', ARGV[2]), key('record', ARGV[2])
local wrong = wrong_type(record, 'hash') or wrong_type(record .. ':endpoints', 'set')
if wrong then
  return {-1, start, wrong}
end

-- First: a server that is full refuses a script whose first write takes memory.
redis.call('ZREM', key('parts'), start)
if is_merged(start) then
  redis.call('UNLINK', part, part .. ':endpoints')
  write_something() -- or other shards' parts would go while no replica has the record
  return {0}
end
redis.call('HSET', record, 'length', ARGV[3], 'unique', ARGV[4], 'estimate', ARGV[5], 'hits', ARGV[6],
  'exact', ARGV[7], 'suspect', ARGV[8], 'dropped', ARGV[9], 'epoch', ARGV[1])
redis.call('ZADD', key('deliveries'), start, start)
if redis.call('EXISTS', part .. ':endpoints') == 1 then
  redis.call('RENAME', part .. ':endpoints', record .. ':endpoints')
  redis.call('ZADD', key('callbacks'), start, start)
end
redis.call('UNLINK', part)
redis.call('ZADD', key('merged'), start, start)
for _, old in ipairs(redis.call('ZRANGE', key('merged'), 0, -1 - MERGED_KEPT)) do
  redis.call('ZREM', key('merged'), old)
end
if ARGV[10] ~= '0' then
  local numbers = table.concat(ARGV, ',', 3, 9)
  keep(start, string.format('[%s,%s,null,null]', numbers, ARGV[1]), ARGV[10])
end
note_sketches(start, digits(start + ARGV[3]))
local merged_through = tonumber(redis.call('HGET', key('state'), 'merged_through') or 0)
redis.call('HSET', key('state'), 'merged_through', digits(math.max(merged_through, start + ARGV[3])))
return {1}
