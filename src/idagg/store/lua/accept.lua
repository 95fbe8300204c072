-- Counts a batch of ids in the window that is open now. Applied at most once, however often it is sent.
--
-- ARGV[1]  window length, s; where it was changed, the window that was open then keeps its own
-- ARGV[2]  ids per window kept exactly
-- ARGV[3]  endpoints per window kept
-- ARGV[4]  the worker's incarnation
-- ARGV[5]  the batch's sequence number, rising from 1 within the incarnation
-- ARGV[6]  "SEQ START SINCE" of the worker's last acknowledged batch; "0 0 0" before the first
-- ARGV[7]  further hits, of ids that acknowledged batches put into the window of ARGV[6]
-- ARGV[8]  at most 4096 ids (unpack() is limited to about 8,000), a JSON array of strings: cheaper to make, and to
--          take apart, than as many arguments
-- ARGV[9…] at most 4096 endpoints, named beside some of the ids
--
-- Returns {start, new, since}
--   start  the start of the window that holds the batch, s
--   new    how many of the ids were not in it before; all of them where the ids are not kept exactly any more
--   since  the batch with which this store's unbroken knowledge of the worker began. It is this batch's own
--          number where the last batch applied here is not the one that ARGV[6] names.
-- The hits of ARGV[7] are counted where START and SINCE are those of ARGV[6], and nowhere else.
-- When a batch comes again, nothing is done. The start and since are those of the first time, and new is all ids.
--
-- Errors: STALE    a later batch of this worker was applied already; nothing was done
--         DIFFERS  length or exact_limit, and the store's: it is not the worker's; nothing was done
--         SCHEMA   the store was written by another version; nothing was done

local state = redis.call('HMGET', key('state'), 'length', 'sealed_through', 'schema', 'bridge', 'exact_limit')
if state[3] and state[3] ~= SCHEMA then
  return redis.error_reply('SCHEMA ' .. state[3])
elseif state[1] and state[1] ~= ARGV[1] then
  return redis.error_reply('DIFFERS length ' .. state[1])
elseif state[5] and state[5] ~= ARGV[2] then
  return redis.error_reply('DIFFERS exact_limit ' .. state[5])
end

local seq = tonumber(ARGV[5])
local ids = cjson.decode(ARGV[8])
local last = read_token(redis.call('HGET', key('workers'), ARGV[4]))
if last.seq == seq then
  return {last.start, #ids, last.since}
elseif last.seq > seq then
  return redis.error_reply('STALE ' .. last.seq)
end

local start, finish = open_window(tonumber(ARGV[1]), tonumber(state[2] or 0), state[4])
local window = key('w', start)
local is_known = last.mark == ARGV[6]
local new, hits = #ids, #ids
if is_known and last.start == start then
  hits = hits + tonumber(ARGV[7])
end

if not state[1] then
  redis.call('HSET', key('state'), 'length', ARGV[1], 'exact_limit', ARGV[2], 'schema', SCHEMA)
end
if #ids > 0 then
  if not redis.call('ZSCORE', key('open'), digits(start)) then
    -- First: nothing may go into a window that nobody would seal.
    redis.call('ZADD', key('open'), digits(start), digits(start))
    redis.call('HSET', window, 'length', digits(finish - start))
  end
  if redis.call('SCARD', window .. ':ids') <= tonumber(ARGV[2]) then
    new = redis.call('SADD', window .. ':ids', unpack(ids))
  else
    redis.call('HSET', window, 'capped', 1)
  end
  redis.call('PFADD', window .. ':hll', unpack(ids))
end

local room = #ARGV > 8 and tonumber(ARGV[3]) - redis.call('SCARD', window .. ':endpoints')
for i = 9, #ARGV do
  if room > 0 then
    room = room - redis.call('SADD', window .. ':endpoints', ARGV[i])
  elseif redis.call('SISMEMBER', window .. ':endpoints', ARGV[i]) == 0 then
    redis.call('HINCRBY', window, 'dropped', 1)
  end
end

-- Last: the token says that all of this was done. Nothing that can fail may come between these two.
if last.start == start then
  hits = hits + last.hits
elseif last.hits > 0 and redis.call('EXISTS', key('w', last.start)) == 1 then
  -- The window before is not sealed yet. If its hash is spoilt, that is for seal.lua to find.
  redis.pcall('HINCRBY', key('w', last.start), 'hits', digits(last.hits))
end
local since = is_known and last.since or seq
redis.call('HSET', key('workers'), ARGV[4], string.format('%d %d %d %d', seq, start, since, hits))
return {start, new, since}
