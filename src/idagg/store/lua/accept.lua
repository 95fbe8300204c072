-- Counts a batch of ids in the window that is open now. Applied at most once, however often it is sent.
--
-- ARGV[1]  window length, s; where it was changed, the window that was open then keeps its own
-- ARGV[2]  ids per window kept exactly, over all shards
-- ARGV[3]  the same, on this shard
-- ARGV[4]  endpoints per window kept
-- ARGV[5]  "NUMBER SHARDS" of the regime by which the ids are this shard's; NUMBER is 0 where the worker knows none
-- ARGV[6]  the worker's incarnation
-- ARGV[7]  the batch's sequence number, rising from 1 within the incarnation
-- ARGV[8]  "SEQ START SINCE" of the worker's last acknowledged batch; "0 0 0" before the first
-- ARGV[9]  further hits, of ids that acknowledged batches put into the window of ARGV[8]
-- ARGV[10] at most 4096 ids (unpack() is limited to about 8,000), a JSON array of strings: cheaper to make, and to
--          take apart, than as many arguments
-- ARGV[11…] at most 4096 endpoints, named beside some of the ids
--
-- Returns {start, new, since, found}
--   start  the start of the window that holds the batch, s
--   new    how many of the ids were not in it before; all of them where the ids are not kept exactly any more
--   since  the batch with which this store's unbroken knowledge of the worker began. It is this batch's own
--          number where the last batch applied here is not the one that ARGV[8] names.
--   found  the number of the last batch applied here before; 0 where this store knows of none
-- The hits of ARGV[9] are counted where START and SINCE are those of ARGV[8], and nowhere else.
-- When a batch comes again, nothing is counted. The start and since are those of the first time, new is all ids, and found
-- its own number.
--
-- Errors: STALE    a later batch of this worker was applied already; nothing was done
--         DIFFERS  length or exact_limit, and the store's: it is not the worker's; nothing was done
--         SCHEMA   the store was written by another version; nothing was done
--         REGIME   number and shards of the open window's regime: it is not the worker's; nothing was done
--         AHEAD    the worker's regime begins with a later window; nothing was done
--         PLANNED  the open window's regime has not been announced yet; nothing was done
--         LEADERLESS  this shard has not heard of a regime yet; nothing was done

local seq = tonumber(ARGV[7])
local ids = cjson.decode(ARGV[10])
local token = redis.call('HGET', key('workers'), ARGV[6])
local last = read_token(token)
if last.seq == seq then
  -- Written again, so that replicas that have this have the batch.
  write_first()
  redis.call('HSET', key('workers'), ARGV[6], token)
  return {last.start, #ids, last.since, seq}
elseif last.seq > seq then
  return redis.error_reply('STALE ' .. last.seq)
elseif refusal then
  return redis.error_reply(refusal)
end

local is_known, hits = last.mark == ARGV[8], #ids
local since = is_known and last.since or seq
if is_known and last.start == start then
  hits = hits + tonumber(ARGV[9])
end
if not state[6] then
  redis.call('HSET', key('state'), 'length', ARGV[1], 'exact_limit', ARGV[2], 'schema', SCHEMA, 'regime', regime,
    'shards', 1)
end
local new = put(start, finish, false, ids, 11, #ARGV)
-- Last: the token says that all of this was done. Nothing that can fail may come between these two.
if last.start == start then
  hits = hits + last.hits
elseif last.hits > 0 and redis.call('EXISTS', key('w', last.start)) == 1 then
  -- The window before is not sealed yet. If its hash is spoilt, that is for seal.lua to find.
  redis.pcall('HINCRBY', key('w', last.start), 'hits', digits(last.hits))
end
redis.call('HSET', key('workers'), ARGV[6], string.format('%d %d %d %d', seq, start, since, hits))
return {start, new, since, last.seq}
