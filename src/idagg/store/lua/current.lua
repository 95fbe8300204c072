-- Looks at the windows that are not sealed. Changes nothing.
--
-- Returns {now, start, ids, late}
--   now    the store's clock, Unix time in microseconds
--   start  the start of the window that takes ids now; 0 before the first leader and the first id
--   ids    how many it has so far; past exact_limit an estimate
--   late   for how long the oldest window that has ended and holds ids has not been sealed, ms; 0: there is none

local state = redis.call('HMGET', key('state'), 'length', 'sealed_through', 'bridge')
local length, now = tonumber(state[1]), now_us()
if not length then
  return {now, 0, 0, 0}
end
local start = open_window(length, tonumber(state[2] or 0), state[3])
local window = key('w', start)
local ids
if redis.call('HGET', window, 'capped') then
  ids = redis.call('PFCOUNT', window .. ':hll')
else
  ids = redis.call('SCARD', window .. ':ids')
end

local late = 0
local oldest = tonumber(redis.call('ZRANGE', key('open'), 0, 0)[1])
if oldest then
  local own = tonumber(redis.pcall('HGET', key('w', oldest), 'length'))
  late = math.max(0, math.floor(now / 1000) - (oldest + (own or length)) * 1000)
end
return {now, start, ids, late}
