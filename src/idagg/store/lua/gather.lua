-- Adds other shards' endpoints of a window to those of the home shard's part, before the parts are merged.
--
-- ARGV[2]  the window's start, s
-- ARGV[3]  endpoints per window kept
-- ARGV[4…] at most 4096 endpoints
--
-- Returns how many were over the limit; none where the window has been merged before.

local endpoints = key('part', ARGV[2]) .. ':endpoints'
write_something()
if is_merged(ARGV[2]) then
  return 0
end
local room, over = ARGV[3] - redis.call('SCARD', endpoints), 0
for i = 4, #ARGV do
  if room > 0 then
    room = room - redis.call('SADD', endpoints, ARGV[i])
  else
    over = over + 1 - redis.call('SISMEMBER', endpoints, ARGV[i])
  end
end
return over
