-- Says what in the store is not as prelude.lua says, but for the records.
--
-- Returns sentences, each naming a key; none where all is well.

local found = {}
for name, wanted in pairs({state = 'hash', lock = 'string', quarantine = 'hash', open = 'zset', deliveries = 'zset',
    messages = 'zset', callbacks = 'zset', workers = 'hash', parts = 'zset', merged = 'zset', kept = 'zset',
    sketches = 'zset', rolling = 'zset', hours = 'hash', days = 'hash', rollups = 'zset'}) do
  found[#found + 1] = wrong_type(key(name), wanted)
end
if #found == 0 then
  found[#found + 1] = wrong_state()
end
if #found > 0 then
  return found
end

local starts = redis.call('ZRANGE', key('open'), 0, 99)
local state = read_state()
local now = state.grid and digits((window_of(state, math.floor(now_us() / 1000000))))
if now and not redis.call('ZSCORE', key('open'), now) then
  table.insert(starts, now)
end
found[#found + 1] = wrong_token()
for _, start in ipairs(starts) do
  found[#found + 1] = wrong_window(start)
end
for _, start in ipairs(redis.call('ZRANGE', key('parts'), 0, 99)) do
  found[#found + 1] = wrong_part(start)
end
return found
