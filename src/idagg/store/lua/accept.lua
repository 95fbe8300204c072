-- Counts a batch of ids in the window that is open now. Applied at most once, however often it is sent.
--
-- ARGV[1]  window length, s
-- ARGV[2]  ids per window kept exactly
-- ARGV[3]  endpoints per window kept
-- ARGV[4]  the worker's incarnation
-- ARGV[5]  the batch's sequence number, rising from 1 within the incarnation
-- ARGV[6]  further hits, of ids that are in the window already; they count in the next one where it has just
--          ended, and are lost where that has no ids yet
-- ARGV[7]  at most 4096 ids (unpack() is limited to about 8,000), a JSON array of strings: cheaper to make, and to
--          take apart, than as many arguments
-- ARGV[8…] at most 4096 endpoints, named beside some of the ids
--
-- Returns the start of the window that holds the batch, s; how many of the ids were not in it before; and for
--         how long it takes ids, ms. When the batch comes again: the start of the first time; all ids; 0. All
--         ids, too, where they are not kept exactly any more.
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
local ids = cjson.decode(ARGV[7])
local last = redis.call('GET', key('batch', ARGV[4]))
if last then
  local last_seq, last_start = string.match(last, '(%d+) (%d+)')
  if tonumber(last_seq) == seq then
    return {tonumber(last_start), #ids, 0}
  elseif tonumber(last_seq) > seq then
    return redis.error_reply('STALE ' .. last_seq)
  end
end

local start, left_ms = open_window(length, tonumber(state[2] or 0))
local window = key('w', start)
local is_open = redis.call('ZSCORE', key('open'), start)
local new = #ids
if #ids > 0 then
  if not is_open then
    -- First: nothing may go into a window that nobody would seal.
    redis.call('ZADD', key('open'), start, start)
    redis.call('HSET', window, 'length', length)
    is_open = true
  end
  if redis.call('SCARD', window .. ':ids') <= tonumber(ARGV[2]) then
    new = redis.call('SADD', window .. ':ids', unpack(ids))
  else
    redis.call('HSET', window, 'capped', 1)
  end
  redis.call('PFADD', window .. ':hll', unpack(ids))
end
if is_open then
  redis.call('HINCRBY', window, 'hits', #ids + tonumber(ARGV[6]))
end

local room = #ARGV > 7 and tonumber(ARGV[3]) - redis.call('SCARD', window .. ':endpoints')
for i = 8, #ARGV do
  if room > 0 then
    room = room - redis.call('SADD', window .. ':endpoints', ARGV[i])
  elseif redis.call('SISMEMBER', window .. ':endpoints', ARGV[i]) == 0 then
    redis.call('HINCRBY', window, 'dropped', 1)
  end
end

redis.call('SET', key('batch', ARGV[4]), ARGV[5] .. ' ' .. start, 'EX', 86400)
return {start, new, left_ms}
