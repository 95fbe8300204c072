-- Seals the oldest window that has ended: fixes what this shard knows of it, its part, and drops its ids.
--
-- ARGV[2]  the second up to which other shards have sealed: what has ended here before that, and is empty, takes no more
--          ids either
--
-- Returns {ms}: nothing has ended; the next window does so in that time, by the store's clock; or
-- {0}: a window was sealed; or
-- {-1, member, what}: the oldest window cannot be read, for what reason; nothing was done.
--
-- Errors: DAMAGED  what: the workers' tokens are no hash; nothing was done
--
-- On the home shard, an empty window is sealed where the leader was there at its end. Empty windows without a leader are
-- passed over: after a year away there are half a million of them. A leader that was there still has the lock: a
-- step of the clock makes no presence, it ends the lease. On other shards nothing that is empty is sealed.

-- Beside those of the window that is sealed and of later ones; some 100 KB. By number, since a token has to be there as
-- long as its batch may come again, and no clock says how long that was: the store's may have been stepped meanwhile.
local TOKENS_KEPT = 1024

-- By how much ids and sketch may differ by chance: five of the sketch's standard errors, of 1.04/sqrt(2^14), and some
-- room for very small counts. Beyond, the store has lost writes.
local CHANCE, SLACK = 5 * 0.0081, 5

local state = read_state()
local now = now_us()

local first = redis.call('ZRANGE', key('open'), 0, 0)[1]
local oldest = tonumber(first)
if first and not string.find(first, '^[1-9]%d*$') then
  return {-1, first, key('open') .. ' names a window that is no number: ' .. first}
end
local since = is_home() and tonumber(state.since)
if not since or redis.call('EXISTS', key('lock')) == 0 then
  since = math.floor(now / 1000000)
end
local start, finish = window_of(state, since)
if oldest and oldest <= start then
  local length = tonumber(redis.pcall('HGET', key('w', oldest), 'length'))
  start, finish = oldest, oldest + (length or state.grid)
end

local passed = math.min(start, tonumber(ARGV[2]))
if passed > state.sealed_through then
  write_first()
  pass(state, passed)
end

local window, part = key('w', start), key('part', start)
local left_us = finish * 1000000 - now
if left_us > 0 then
  return {math.ceil(left_us / 1000)}
end
local wrong = wrong_window(digits(start))
if wrong then
  return {-1, tostring(start), wrong}
end
wrong = wrong_type(key('workers'), 'hash')
if wrong then
  return redis.error_reply('DAMAGED ' .. wrong)
end

-- First: a server that is full refuses a script whose first write takes memory, and sealing is what frees it.
redis.call('ZREM', key('open'), digits(start))
local meta = redis.call('HMGET', window, 'hits', 'dropped', 'capped')
local hits = tonumber(meta[1] or 0)
local tokens = redis.call('HGETALL', key('workers'))
local earlier = {}
for i = 1, #tokens, 2 do
  local token = read_token(tokens[i + 1])
  if token and token.start == start then
    hits = hits + token.hits
  elseif token and token.start < start then
    earlier[#earlier + 1] = {token.start, tokens[i]}
  end
end
if #earlier > TOKENS_KEPT then
  table.sort(earlier, function(one, other) return one[1] < other[1] end)
  for i = 1, #earlier - TOKENS_KEPT do
    redis.call('HDEL', key('workers'), earlier[i][2])
  end
end
local unique = redis.call('SCARD', window .. ':ids')
-- Whoever chooses the ids can choose some that a sketch takes for many. There were no more ids than hits.
local estimate = math.min(redis.call('PFCOUNT', window .. ':hll'), math.max(unique, hits))
local is_exact = not meta[3]
local is_suspect = is_exact and math.abs(unique - estimate) > CHANCE * unique + SLACK
if is_suspect then
  unique, is_exact = math.max(unique, estimate), false
elseif not is_exact then
  unique = estimate
end
redis.call('HSET', part, 'length', digits(finish - start), 'unique', digits(unique), 'estimate', digits(estimate),
  'hits', digits(hits), 'exact', is_exact and 1 or 0, 'suspect', is_suspect and 1 or 0, 'dropped', meta[2] or 0)
redis.call('ZADD', key('parts'), digits(start), digits(start))
if redis.call('EXISTS', window .. ':endpoints') == 1 then
  redis.call('RENAME', window .. ':endpoints', part .. ':endpoints')
end
redis.call('UNLINK', window, window .. ':ids')
redis.call('EXPIRE', window .. ':hll', 172800)
pass(state, finish)
return {0}
