-- Publishes the state of a machine for a time, and forgets machines that have published nothing for so long.
--
-- ARGV[1]  the machine's id
-- ARGV[2]  its state; '': it stops, and is forgotten
-- ARGV[3]  how long it stays, ms
-- ARGV[4]  of at most so many machines; those that have published last stay
--
-- Returns 1.

local fleet = key('fleet')
local now_ms = math.floor(now_us() / 1000)

local function forget(id)
  redis.call('ZREM', fleet, id)
  redis.call('UNLINK', key('machine', id))
end

if ARGV[2] == '' then
  forget(ARGV[1])
  return 1
end
redis.call('SET', key('machine', ARGV[1]), ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', fleet, digits(now_ms), ARGV[1])
redis.call('PEXPIRE', fleet, ARGV[3])

-- The oldest first. Each call has at most two to forget, so that none takes long.
for _ = 1, 2 do
  local oldest = redis.call('ZRANGE', fleet, 0, 0, 'WITHSCORES')
  if now_ms - oldest[2] <= tonumber(ARGV[3]) and redis.call('ZCARD', fleet) <= tonumber(ARGV[4]) then
    break
  end
  forget(oldest[1])
end
return 1
