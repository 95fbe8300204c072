-- Gives a window's pending callbacks, a piece at a time: hits wait behind each.
--
-- ARGV[1]  the window's start, s
-- ARGV[2]  0, then the cursor that was returned last
-- ARGV[3]  about so many in a piece
--
-- Returns {cursor, endpoint, attempts, ms, …}: a cursor of 0 ends it; by endpoint, how many attempts have begun, and in
-- how many ms the next may. An endpoint can come twice. Or
-- {-1, what}: an endpoint's attempts cannot be read

local record = key('record', ARGV[1])
local now_ms = math.floor(now_us() / 1000)
local piece = redis.call('SSCAN', record .. ':endpoints', ARGV[2], 'COUNT', ARGV[3])
local found = {piece[1]}
for _, endpoint in ipairs(piece[2]) do
  local begun = redis.call('HGET', record .. ':attempts', endpoint) or '0 0'
  local attempts, due_ms = string.match(begun, '^(%d+) (%d+)$')
  if not attempts then
    return {'-1', record .. ':attempts has ' .. begun .. ' for ' .. endpoint}
  end
  found[#found + 1] = endpoint
  found[#found + 1] = tonumber(attempts)
  found[#found + 1] = math.max(due_ms - now_ms, 0)
end
return found
