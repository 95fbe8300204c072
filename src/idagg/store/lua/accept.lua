-- Counts a batch of ids in the window that is open now. Applied at most once, however often it is sent.
--
-- ARGV[1]  window length, s
-- ARGV[2]  ids per window kept exactly
-- ARGV[3]  endpoints per window kept
-- ARGV[4]  the worker's incarnation
-- ARGV[5]  the batch's sequence number, rising from 1 within the incarnation
-- ARGV[6]  1 to 4096 ids (unpack() is limited to about 8,000), a JSON array of strings: cheaper to make, and to
--          take apart, than as many arguments
-- ARGV[7…] at most 4096 endpoints
--
-- Returns the start of the window that holds the batch, s: of the first time, when it comes again.
-- Errors: STALE   a later batch of this worker was applied already; nothing was done
--         LENGTH  the store's windows are of another length; nothing was done
--         SCHEMA  the store was written by another version; nothing was done

local length = tonumber(ARGV[1])
local state = redis.call('HMGET', key('state'), 'length', 'sealed_through', 'schema')
if state[3] and state[3] ~= SCHEMA then
  return redis.error_reply('SCHEMA ' .. state[3])
elseif not state[1] then
  redis.call('HSET', key('state'), 'length', length, 'schema', SCHEMA)
elseif tonumber(state[1]) ~= length then
  return redis.error_reply('LENGTH ' .. state[1])
end

local seq = tonumber(ARGV[5])
local last = redis.call('GET', key('batch', ARGV[4]))
if last then
  local last_seq, last_start = string.match(last, '(%d+) (%d+)')
  if tonumber(last_seq) == seq then
    return tonumber(last_start)
  elseif tonumber(last_seq) > seq then
    return redis.error_reply('STALE ' .. last_seq)
  end
end

local start = open_window(length, tonumber(state[2] or 0))
local ids = cjson.decode(ARGV[6])
local window = key('w', start)
-- First: nothing may go into a window that nobody would seal.
if not redis.call('ZSCORE', key('open'), start) then
  redis.call('ZADD', key('open'), start, start)
  redis.call('HSET', window, 'length', length)
end
redis.call('HINCRBY', window, 'hits', #ids)
if redis.call('SCARD', window .. ':ids') <= tonumber(ARGV[2]) then
  redis.call('SADD', window .. ':ids', unpack(ids))
else
  redis.call('HSET', window, 'capped', 1)
end
redis.call('PFADD', window .. ':hll', unpack(ids))

local room = #ARGV > 6 and tonumber(ARGV[3]) - redis.call('SCARD', window .. ':endpoints')
for i = 7, #ARGV do
  if room > 0 then
    room = room - redis.call('SADD', window .. ':endpoints', ARGV[i])
  elseif redis.call('SISMEMBER', window .. ':endpoints', ARGV[i]) == 0 then
    redis.call('HINCRBY', window, 'dropped', 1)
  end
end

redis.call('SET', key('batch', ARGV[4]), ARGV[5] .. ' ' .. start, 'EX', 86400)
return start
