-- Says what in the store is not as prelude.lua says, but for the records.
--
-- Returns sentences, each naming a key; none where all is well.

local found = {}
for name, wanted in pairs({state = 'hash', lock = 'string', quarantine = 'hash', open = 'zset', deliveries = 'zset',
    messages = 'zset', callbacks = 'zset', workers = 'hash'}) do
  found[#found + 1] = wrong_type(key(name), wanted)
end
if #found == 0 then
  found[#found + 1] = wrong_number(key('state'), {'length', 'exact_limit', 'sealed_through', 'epoch', 'since'})
  local bridge = redis.call('HGET', key('state'), 'bridge')
  if bridge and not string.find(bridge, '^%d+ %d+$') then
    found[#found + 1] = key('state') .. ' has no window as bridge, but ' .. bridge
  end
end
if #found > 0 then
  return found
end

local starts = redis.call('ZRANGE', key('open'), 0, 99)
local state = redis.call('HMGET', key('state'), 'length', 'sealed_through', 'bridge')
local now = state[1] and digits((open_window(tonumber(state[1]), tonumber(state[2] or 0), state[3])))
if now and not redis.call('ZSCORE', key('open'), now) then
  table.insert(starts, now)
end
found[#found + 1] = wrong_token()
for _, start in ipairs(starts) do
  found[#found + 1] = wrong_window(start)
end
return found
