-- Looks at the windows that are not sealed. Changes nothing.
--
-- Returns {now, start, ids, late, end, shards}
--   now    the store's clock, Unix time in microseconds
--   start  the start of the window that takes ids now; 0 before the first leader and the first id
--   ids    how many it has so far; past exact_limit an estimate
--   late   for how long the oldest window that has ended and holds ids has not been sealed here, or not been merged with
--          the other shards' parts, ms; 0: there is none
--   end    of the window that takes ids now; 0 as the start
--   shards over how many its ids are spread

local state, now = read_state(), now_us()
if not state.grid then
  return {now, 0, 0, 0, 0, 1}
end
local start, finish = window_of(state, math.floor(now / 1000000))
local window = key('w', start)
local ids
if redis.call('HGET', window, 'capped') then
  ids = redis.call('PFCOUNT', window .. ':hll')
else
  ids = redis.call('SCARD', window .. ':ids')
end

-- For how long the oldest window of an index has ended; its length is in a hash of that kind.
local function late(index, kind)
  local oldest = tonumber(redis.call('ZRANGE', key(index), 0, 0)[1])
  if not oldest then
    return 0
  end
  local length = tonumber(redis.pcall('HGET', key(kind, oldest), 'length'))
  return math.floor(now / 1000) - (oldest + (length or state.grid)) * 1000
end

local plan = state.plan and read_plan(state.plan)
local shards = plan and start >= plan.begins and plan.shards or string.match(state.regime or '', '^%d+ (%d+)')
return {now, start, ids, math.max(0, late('open', 'w'), is_home() and late('parts', 'part') or 0), finish,
  tonumber(shards or 1)}
