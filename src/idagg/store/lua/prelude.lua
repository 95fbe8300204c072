-- Opens every script: the one clock, and where things live.
--
-- KEYS[1] is the shard's tag, e.g. {idagg:0}. Every key is made from it, so that all of a shard's keys hash
-- to one slot of a cluster:
--
--   TAG:state             hash    schema, length (s) and exact_limit, which all processes agree on; sealed_through (s), epoch, since (s; the epoch's begin),
--                                 bridge ("START END" of the window in which the length was changed last: the windows of
--                                 the present length come after it. Gone once it is sealed)
--   TAG:lock              string  the leader's name, with a time to live
--   TAG:open              zset    starts of the windows that hold ids and are not sealed
--   TAG:w:START           hash    length (s), hits (less those in tokens), dropped (endpoints over the limit), capped
--   TAG:w:START:ids       set     the ids, canonical decimal
--   TAG:w:START:hll       HyperLogLog of the ids; kept 48 h after sealing
--   TAG:w:START:endpoints set     the window's endpoints
--   TAG:deliveries        zset    pending deliveries: starts of the sealed windows that no sink has
--   TAG:messages          zset    pending messages: starts of those that are in the log file and not in the queue
--   TAG:callbacks         zset    starts of the sealed windows with pending callbacks
--   TAG:record:START      hash    of a sealed window: length, unique, estimate, hits, exact, suspect, dropped, epoch
--   TAG:record:START:endpoints  set   the endpoints of its pending callbacks
--   TAG:record:START:attempts   hash  by endpoint, once an attempt has begun: "ATTEMPTS DUE", how many have, and when
--                                 the next may (Unix time, ms)
--   TAG:quarantine        hash    what was taken out of an index because it cannot be read: by "INDEX MEMBER",
--                                 what is wrong with it; its keys stay where they are, for a person
--   TAG:workers           hash    by worker its token "SEQ START SINCE HITS": the last batch, the window it went
--                                 to, the first batch of those that were applied here without a gap, and the
--                                 worker's hits in that window. Kept until there are 1024 of later windows

-- Of this layout; a store of another is left alone.
local SCHEMA = '3'

-- Plain, since a script makes half a dozen: with table.concat() they were a tenth of a small batch.
local function key(name, part)
  if part then
    return KEYS[1] .. ':' .. name .. ':' .. part
  end
  return KEYS[1] .. ':' .. name
end

-- A whole number as Redis is to store it: Redis 7.2 writes a number that a script passes on itself, and
-- 1800000000 as 1.8e+9.
local function digits(number)
  return string.format('%d', number)
end

-- Unix time in microseconds. Below 2^53, so that a Lua number holds it exactly.
local function now_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

-- Start and end of the first window that ends after the second and is not sealed. The numbers and the bridge are the
-- state's. Windows lie on the grid of their length, but for those cut short by a change of it.
local function window_at(second, length, sealed_through, bridge)
  second = math.max(second, sealed_through)
  local start = second - second % length
  local finish = start + length
  if bridge then
    local first, last = string.match(bridge, '^(%d+) (%d+)$')
    if second < tonumber(last) then
      start, finish = tonumber(first), tonumber(last)
    else
      start = math.max(start, tonumber(last))
    end
  end
  return math.max(start, sealed_through), finish
end

-- The same of the window that takes ids now.
local function open_window(length, sealed_through, bridge)
  return window_at(math.floor(now_us() / 1000000), length, sealed_through, bridge)
end

-- What a worker's token says; of a worker without one, noughts. The mark is the token without its hits.
local function read_token(token)
  local mark, seq, start, since, hits = string.match(token or '0 0 0 0', '^((%d+) (%d+) (%d+)) (%d+)$')
  if mark then
    return {mark = mark, seq = tonumber(seq), start = tonumber(start), since = tonumber(since), hits = tonumber(hits)}
  end
end
