-- Seals the oldest window that has ended: fixes its count, writes its record, drops its ids.
--
-- Returns {ms}: nothing has ended; the next window does so in that time, by the store's clock; or
-- {0}: a window was sealed; or
-- {-1, member, what}: the oldest window cannot be read, for what reason; nothing was done.
--
-- Errors: DAMAGED  what: the workers' tokens are no hash; nothing was done
--
-- An empty window is sealed where the leader was there at its end. Empty windows without a leader are passed
-- over: after a year away there are half a million of them. A leader that was there still has the lock: a
-- step of the clock makes no presence, it ends the lease.

-- Beside those of the window that is sealed and of later ones; some 100 KB. By number, since a token has to be there as
-- long as its batch may come again, and no clock says how long that was: the store's may have been stepped meanwhile.
local TOKENS_KEPT = 1024

-- By how much ids and sketch may differ by chance: five of the sketch's standard errors, of 1.04/sqrt(2^14), and some
-- room for very small counts. Beyond, the store has lost writes.
local CHANCE, SLACK = 5 * 0.0081, 5

local state = redis.call('HMGET', key('state'), 'length', 'sealed_through', 'since', 'bridge', 'exact_limit')
local sealed_through, bridge = tonumber(state[2]), state[4]
local exact_limit = (state[5] or math.huge) + 0
local now = now_us()

local first = redis.call('ZRANGE', key('open'), 0, 0)[1]
local oldest = tonumber(first)
if first and not string.find(first, '^[1-9]%d*$') then
  return {-1, first, key('open') .. ' names a window that is no number: ' .. first}
end
local since = tonumber(state[3])
if redis.call('EXISTS', key('lock')) == 0 then
  since = math.floor(now / 1000000)
end
local start, finish = window_at(since, tonumber(state[1]), sealed_through, bridge)
if oldest and oldest <= start then
  local length = tonumber(redis.pcall('HGET', key('w', oldest), 'length'))
  start, finish = oldest, oldest + (length or state[1])
end

local window, record = key('w', start), key('record', start)
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
local count = redis.call('SCARD', window .. ':ids')
local estimate = redis.call('PFCOUNT', window .. ':hll')
local is_exact = not meta[3] and count <= exact_limit
local is_suspect = is_exact and math.abs(count - estimate) > CHANCE * count + SLACK
local unique
if is_suspect then
  unique, is_exact = math.max(count, estimate), false
else
  estimate = math.min(estimate, math.max(count, hits))
  unique = is_exact and count or estimate
end
redis.call('HSET', record, 'length', digits(finish - start), 'unique', digits(unique), 'estimate', digits(estimate),
  'hits', digits(hits), 'exact', is_exact and 1 or 0, 'suspect', is_suspect and 1 or 0, 'dropped', meta[2] or 0,
  'epoch', ARGV[1])
redis.call('ZADD', key('deliveries'), digits(start), digits(start))
if redis.call('EXISTS', window .. ':endpoints') == 1 then
  redis.call('RENAME', window .. ':endpoints', record .. ':endpoints')
  redis.call('ZADD', key('callbacks'), digits(start), digits(start))
end
redis.call('UNLINK', window, window .. ':ids')
redis.call('EXPIRE', window .. ':hll', 172800)
sealed_through = math.max(sealed_through, finish)
redis.call('HSET', key('state'), 'sealed_through', digits(sealed_through))
if bridge and sealed_through >= tonumber(string.match(bridge, '%d+$')) then
  redis.call('HDEL', key('state'), 'bridge')
end
return {0}
