-- Marks callbacks of a window as done.
--
-- ARGV[2]  the window's start, s
-- ARGV[3…] at most 4096 endpoints; none: all that are left are given up
--
-- Returns the number of endpoints still to be called.

local endpoints, attempts = key('record', ARGV[2]) .. ':endpoints', key('record', ARGV[2]) .. ':attempts'
if #ARGV > 2 then
  redis.call('SREM', endpoints, unpack(ARGV, 3))
  redis.call('HDEL', attempts, unpack(ARGV, 3))
else
  redis.call('UNLINK', endpoints)
end
local left = redis.call('SCARD', endpoints)
if left == 0 then
  redis.call('UNLINK', attempts)
  redis.call('ZREM', key('callbacks'), ARGV[2])
  drop_if_done(ARGV[2])
end
return left
