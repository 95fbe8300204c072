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
-- Where the length is changed, the window that takes ids goes on until its own end, and those of the new length come
-- after it; if it holds none, they come at once.
--
-- Errors: SCHEMA  the store was written by another version; nothing was done

local holder = redis.call('GET', key('lock'))
local state = redis.call('HMGET', key('state'), 'schema', 'epoch', 'length', 'sealed_through', 'bridge')
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

local sealed_through, now_s = tonumber(state[4] or 0), math.floor(now_us() / 1000000)
local bridge = state[5]
if state[3] and tonumber(state[3]) ~= length then
  local start, finish = open_window(tonumber(state[3]), sealed_through, state[5])
  if redis.call('ZSCORE', key('open'), start) then
    bridge = start .. ' ' .. finish
  else
    sealed_through = math.max(sealed_through, now_s)
  end
end
-- First: a server that is full refuses a script whose first write takes memory, and needs a leader to seal.
redis.call('DEL', key('lock'))
redis.call('SET', key('lock'), ARGV[1], 'PX', ARGV[2])
redis.call('HSET', key('state'), 'schema', SCHEMA, 'length', length, 'sealed_through', sealed_through, 'since', now_s)
if bridge then
  redis.call('HSET', key('state'), 'bridge', bridge)
end
local epoch = redis.call('HINCRBY', key('state'), 'epoch', 1)
return {epoch, tonumber(ARGV[2]), length, epoch}
