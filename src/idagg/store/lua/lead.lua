-- Takes the leader's lock where it is free, keeps it where the caller holds it.
--
-- ARGV[1]  the caller's name
-- ARGV[2]  lease, ms
-- ARGV[3]  window length, s
-- ARGV[4]  ids per window kept exactly
-- ARGV[5]  the epoch whose leader may be succeeded by one that changes one of these; 'any': every epoch's; 'none': the
--          lock is left to those who have the store's
--
-- Returns {epoch, ms, last, length, exact_limit}: the epoch, 0 where the caller does not lead; how long the present
-- lease lasts, 0 where nobody leads; the epoch that began last, 0 before the first; the store's window length and limit.
-- Taking the lock begins a new epoch: while the last one stays, nobody has taken it.
--
-- Where the length is changed, the window that takes ids goes on until its own end, and those of the new length come
-- after it; if it holds none, they come at once.
--
-- Errors: SCHEMA  the store was written by another version; nothing was done

local holder = redis.call('GET', key('lock'))
local state = redis.call('HMGET', key('state'), 'schema', 'epoch', 'length', 'sealed_through', 'bridge',
  'exact_limit')
local last, length, exact_limit = tonumber(state[2] or 0), state[3] or ARGV[3], state[6] or ARGV[4]
local is_other_length = length ~= ARGV[3]

local function answer(epoch, ms)
  return {epoch, ms, last, tonumber(length), tonumber(exact_limit)}
end

if state[1] and state[1] ~= SCHEMA then
  return redis.error_reply('SCHEMA ' .. state[1])
elseif holder and holder ~= ARGV[1] then
  return answer(0, redis.call('PTTL', key('lock')))
elseif holder and state[2] then
  redis.call('PEXPIRE', key('lock'), ARGV[2])
  return answer(last, tonumber(ARGV[2]))
elseif (is_other_length or exact_limit ~= ARGV[4]) and ARGV[5] ~= 'any' and tonumber(ARGV[5]) ~= last then
  return answer(0, 0)
end

local sealed_through, now_s = tonumber(state[4] or 0), math.floor(now_us() / 1000000)
local bridge = state[5]
if is_other_length then
  local start, finish = open_window(tonumber(length), sealed_through, bridge)
  if redis.call('ZSCORE', key('open'), digits(start)) then
    bridge = start .. ' ' .. finish
  else
    sealed_through = math.max(sealed_through, now_s)
  end
end
-- First: a server that is full refuses a script whose first write takes memory, and needs a leader to seal.
redis.call('DEL', key('lock'))
redis.call('SET', key('lock'), ARGV[1], 'PX', ARGV[2])
length, exact_limit = ARGV[3], ARGV[4]
redis.call('HSET', key('state'), 'schema', SCHEMA, 'length', length, 'exact_limit', exact_limit,
  'sealed_through', digits(sealed_through), 'since', digits(now_s))
if bridge then
  redis.call('HSET', key('state'), 'bridge', bridge)
end
last = redis.call('HINCRBY', key('state'), 'epoch', 1)
return answer(last, tonumber(ARGV[2]))
