-- Opens the scripts by which a regime is planned.

-- No window that begins after this second has any ids: it is not the clock alone that says so, since that may have been
-- stepped back, or be another server's than the one that took them.
local function latest(state)
  local newest = tonumber(redis.call('ZRANGE', key('open'), -1, -1)[1]) or 0
  return math.max(now_us() / 1000000, state.sealed_through, newest)
end
