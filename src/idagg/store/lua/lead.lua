-- Takes the leader's lock where it is free, keeps it where the caller holds it.
--
-- ARGV[1]  the caller's name
-- ARGV[2]  lease, ms
-- ARGV[3]  window length, s
-- ARGV[4]  the epoch whose leader may be succeeded by one that changes the length; 'any': every epoch's; 'none': the
--          lock is left to those who have the store's length
--
-- Returns {epoch, ms, length, last}: the epoch, 0 where the caller does not lead; how long the present lease lasts, 0
-- where nobody leads; the length of the store's windows, s; the epoch that began last, 0 before the first. Taking the
-- lock begins a new epoch: while that number stays, nobody has taken it.
--
-- Where the length is changed, windows of the old one stay open until their own end, and those of the new one
-- begin after it.
--
-- Errors: SCHEMA  the store was written by another version; nothing was done

local holder = redis.call('GET', key('lock'))
local state = redis.call('HMGET', key('state'), 'schema', 'epoch', 'length', 'sealed_through')
local length, last = tonumber(ARGV[3]), state[2] or '0'
if state[1] and state[1] ~= SCHEMA then
  return redis.error_reply('SCHEMA ' .. state[1])
elseif holder and holder ~= ARGV[1] then
  return {0, redis.call('PTTL', key('lock')), tonumber(state[3] or length), tonumber(last)}
elseif holder and state[2] then
  redis.call('PEXPIRE', key('lock'), ARGV[2])
  return {tonumber(last), tonumber(ARGV[2]), tonumber(state[3]), tonumber(last)}
elseif state[3] and tonumber(state[3]) ~= length and ARGV[4] ~= 'any' and ARGV[4] ~= last then
  return {0, 0, tonumber(state[3]), tonumber(last)}
end

local sealed_through = tonumber(state[4] or 0)
if state[3] and tonumber(state[3]) ~= length then
  for _, start in ipairs(redis.call('ZRANGE', key('open'), 0, -1)) do
    -- What cannot be read is for seal.lua to find.
    local theirs = tonumber(redis.pcall('HGET', key('w', start), 'length'))
    sealed_through = math.max(sealed_through, (tonumber(start) or 0) + (theirs or 0))
  end
end
-- First: a server that is full refuses a script whose first write takes memory, and needs a leader to seal.
redis.call('DEL', key('lock'))
redis.call('SET', key('lock'), ARGV[1], 'PX', ARGV[2])
redis.call('HSET', key('state'), 'schema', SCHEMA, 'length', length, 'sealed_through', sealed_through,
  'since', math.floor(now_us() / 1000000))
local epoch = redis.call('HINCRBY', key('state'), 'epoch', 1)
return {epoch, tonumber(ARGV[2]), length, epoch}
