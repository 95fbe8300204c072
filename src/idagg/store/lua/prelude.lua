-- Opens every script: the one clock, and where things live.
--
-- KEYS[1] is the shard's tag, e.g. {idagg:0}. Every key is made from it, so that all of a shard's keys hash
-- to one slot of a cluster:
--
--   TAG:state             hash    schema, length (s) and exact_limit, which all processes agree on; sealed_through (s), epoch, since (s; the epoch's begin),
--                                 bridge ("START END" of the window in which the length was changed last: the windows of
--                                 the present length come after it. Gone once it is sealed);
--                                 regime ("NUMBER SHARDS LENGTH" of the windows that are open now), begins (s; the start of
--                                 its first window), plan ("BEGINS NUMBER SHARDS LENGTH" of the regime to come);
--                                 seen (1: written where a write was needed and there was nothing to write)
--   TAG:lock              string  the leader's name, with a time to live
--   TAG:open              zset    starts of the windows that hold ids and are not sealed
--   TAG:w:START           hash    length (s), hits (less those in tokens), dropped (endpoints over the limit), capped
--   TAG:w:START:ids       set     the ids, canonical decimal
--   TAG:w:START:hll       HyperLogLog of the ids; kept 48 h after sealing
--   TAG:w:START:endpoints set     the window's endpoints
--   TAG:parts             zset    starts of the windows that are sealed here, and not merged with the other shards' yet
--   TAG:part:START        hash    what this shard knows of such a window: length, unique, estimate, hits, exact, suspect,
--                                 dropped
--   TAG:part:START:endpoints  set
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
--
-- The home shard, {NAMESPACE:0}, has the lock, and all that becomes of a window once its parts are merged: deliveries,
-- messages, callbacks, records, and
--
--   TAG:merged            zset    starts of the 1024 newest windows that were merged: parts of these that are left, or come
--                                 late, are dropped
--   TAG:kept              zset    the hours, Unix time, of which records are kept, to be read back
--   TAG:kept:HOUR         hash    by the START of each window that begins in the hour, its record, a JSON array: [length,
--                                 unique, estimate, hits, exact, suspect, dropped, epoch, logged, published]; the last two
--                                 say how many ms after the window's end its line was in the log file, and its message in
--                                 the queue, null if it is not; expires after --keep-records
--   TAG:fleet             zset    ids of the machines that have published their state lately, by when (ms)
--   TAG:machine:ID        string  that state, packed; expires 10 minutes after its machine's last word
--   TAG:sketches          zset    by its end, each merged window of the last 48 h: "START SHARDS"; SHARDS is a bit mask in
--                                 hexadecimal of the shards that have a sketch of it, TAG:w:START:hll
--   TAG:rolling           zset    of these, the windows that are not in an hour's sketch yet: "START SHARDS HITS UNIQUE
--                                 SUSPECT"
--   TAG:hour:START        HyperLogLog of the ids of the windows that begin in the hour, of all shards; kept 90 days
--   TAG:day:START         the same of a day (UTC); kept 400 days
--   TAG:hours, TAG:days   hash    by START "SECONDS GONE HITS UNIQUE SUSPECT", added up over the windows in it; GONE is how
--                                 many sketches are missing in it, since they had expired. An hour is whole once the state's
--                                 hours_through (s) has passed it
--   TAG:rollups           zset    pending roll-ups by their end: "KIND START UNIQUE HITS SUSPECT EPOCH" of hours and days
--   TAG:rollups:late      zset    those of them that are in the log file and not in the queue
--
-- Its state says in addition: shards, which all processes agree on, too; span (how many shards may hold anything that is
-- not merged), merged_through (s), proposal (a plan that not all shards have heard of), announced (the plan, once workers
-- may be told of it). The state of another shard says serial: what the leader told it last in this epoch.

-- Of this layout; a store of another is left alone.
local SCHEMA = '4'

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

local function is_home()
  return string.sub(KEYS[1], -3) == ':0}'
end

-- A server that is full refuses a script whose first write takes memory. This one takes none.
local function write_first()
  redis.call('DEL', key('scratch'))
end

-- For where nothing else is to be written: replicas that have this have all that the script sees. WAIT asks for what its
-- own connection has written, and asks for nothing on a new one.
local function write_something()
  write_first()
  redis.call('HSET', key('state'), 'seen', 1)
end

-- A plan's numbers, and its "NUMBER SHARDS LENGTH".
local function read_plan(plan)
  local begins, regime, number, shards, length = string.match(plan, '^(%d+) ((%d+) (%d+) (%d+))$')
  return {begins = tonumber(begins), regime = regime, number = number, shards = shards, length = tonumber(length)}
end

-- Start and end of the first window that ends after the second and is not sealed. The length is the regime's; the rest
-- is the state's. Windows lie on the grid of their length, but for those cut short by a change of it.
local function window_at(second, length, sealed_through, bridge, plan)
  second = math.max(second, sealed_through)
  local begins = 0
  if plan then
    plan = read_plan(plan)
    if second >= plan.begins then
      begins, length = plan.begins, plan.length
    end
  end
  local start = math.max(second - second % length, begins)
  local finish = second - second % length + length
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
local function open_window(length, sealed_through, bridge, plan)
  return window_at(math.floor(now_us() / 1000000), length, sealed_through, bridge, plan)
end

-- The state's fields by name; sealed_through is a number. The grid is the length of the windows that are open now.
local function read_state()
  local fields, state = redis.call('HGETALL', key('state')), {}
  for i = 1, #fields, 2 do
    state[fields[i]] = fields[i + 1]
  end
  state.sealed_through = tonumber(state.sealed_through or 0)
  state.grid = tonumber(string.match(state.regime or '', '%d+$') or state.length)
  return state
end

-- As window_at, of what read_state() says.
local function window_of(state, second)
  return window_at(second, state.grid, state.sealed_through, state.bridge, state.plan)
end

-- Notes that no window before this second takes ids any more. The regime that was planned and announced is the present
-- one then, if all windows before it are sealed; that is the home shard's to say, and the leader tells the others.
local function pass(state, second)
  if second > state.sealed_through then
    state.sealed_through = second
    redis.call('HSET', key('state'), 'sealed_through', digits(second))
  end
  if state.bridge and state.sealed_through >= tonumber(string.match(state.bridge, '%d+$')) then
    redis.call('HDEL', key('state'), 'bridge')
  end
  local plan = state.plan and state.plan == state.announced and is_home() and read_plan(state.plan)
  if plan and state.sealed_through >= plan.begins then
    redis.call('HSET', key('state'), 'regime', plan.regime, 'begins', digits(plan.begins))
    redis.call('HDEL', key('state'), 'plan', 'announced')
  end
end

-- What a worker's token says; of a worker without one, noughts. The mark is the token without its hits.
local function read_token(token)
  local mark, seq, start, since, hits = string.match(token or '0 0 0 0', '^((%d+) (%d+) (%d+)) (%d+)$')
  if mark then
    return {mark = mark, seq = tonumber(seq), start = tonumber(start), since = tonumber(since), hits = tonumber(hits)}
  end
end
