-- Counts attempts at a window's pending callbacks, before they are made.
--
-- ARGV[2]  the window's start, s
-- ARGV[3…] by threes, at most 1000 of them: an endpoint; how many attempts at it have begun with this one; in how
--          many ms the next may follow
--
-- Returns for each endpoint 1, or 0 where it is not pending any more; nothing was noted of it then.

local endpoints = key('record', ARGV[2]) .. ':endpoints'
local now_ms = math.floor(now_us() / 1000)
local counted = {}
for i = 3, #ARGV, 3 do
  local is_pending = redis.call('SISMEMBER', endpoints, ARGV[i])
  if is_pending == 1 then
    local attempt = string.format('%d %d', ARGV[i + 1], now_ms + ARGV[i + 2])
    redis.call('HSET', key('record', ARGV[2]) .. ':attempts', ARGV[i], attempt)
  end
  counted[#counted + 1] = is_pending
end
return counted
