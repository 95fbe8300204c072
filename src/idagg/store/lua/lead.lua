-- Takes the leader's lock where it is free, keeps it where the caller holds it.
--
-- ARGV[1]  the caller's name
-- ARGV[2]  lease, ms
-- ARGV[3]  window length, s
-- ARGV[4]  ids per window kept exactly
-- ARGV[5]  shards
-- ARGV[6]  the epoch whose leader may be succeeded by one that changes one of these three; 'any': every epoch's; 'none':
--          the lock is left to those who have the store's
--
-- Returns {epoch, ms, last, length, exact_limit, shards, number, spread}: the epoch, 0 where the caller does not lead;
-- how long the present lease lasts, 0 where nobody leads; the epoch that began last, 0 before the first; the store's
-- window length, limit and shards; the number of the open window's regime, and over how many shards its ids are spread.
-- Taking the lock begins a new epoch: while the last one stays, nobody has taken it.
--
-- Where the length is changed, the window that takes ids goes on until its own end, and those of the new length come
-- after it; if it holds none, they come at once. With more shards than one, or another number of them, the change has
-- to be planned: it is the leader's to do so, and until then windows are as they were.
--
-- Errors: SCHEMA  the store was written by another version; nothing was done

local holder = redis.call('GET', key('lock'))
local state = read_state()
local last = tonumber(state.epoch or 0)
local length, exact_limit, shards = state.length or ARGV[3], state.exact_limit or ARGV[4], state.shards or ARGV[5]
local now_s = math.floor(now_us() / 1000000)

local function answer(epoch, ms)
  local number, spread = 0, shards
  if state.regime then
    number, spread = string.match(state.regime, '^(%d+) (%d+)')
    local plan = state.plan and state.plan == state.announced and read_plan(state.plan)
    if plan and window_of(state, now_s) >= plan.begins then
      number, spread = plan.number, plan.shards
    end
  end
  return {epoch, ms, last, tonumber(length), tonumber(exact_limit), tonumber(shards), tonumber(number), tonumber(spread)}
end

if state.schema and state.schema ~= SCHEMA then
  return redis.error_reply('SCHEMA ' .. state.schema)
elseif holder and holder ~= ARGV[1] then
  -- After the clock was stepped back, the lock of a leader that died would last as much longer.
  local left = redis.call('PTTL', key('lock'))
  if left < 0 or left > tonumber(ARGV[2]) then
    left = tonumber(ARGV[2])
    redis.call('PEXPIRE', key('lock'), left)
  end
  return answer(0, left)
elseif holder and state.epoch then
  redis.call('PEXPIRE', key('lock'), ARGV[2])
  return answer(last, tonumber(ARGV[2]))
elseif (length ~= ARGV[3] or exact_limit ~= ARGV[4] or shards ~= ARGV[5]) and ARGV[6] ~= 'any'
  and tonumber(ARGV[6]) ~= last then
  return answer(0, 0)
end

state.regime = state.regime or string.format('1 %s %s', ARGV[5], ARGV[3])
local number, spread, grid = string.match(state.regime, '^(%d+) (%d+) (%d+)$')
if grid ~= ARGV[3] and spread == '1' and ARGV[5] == '1' and not state.plan and tonumber(state.span or 1) == 1 then
  local start, finish = window_of(state, now_s)
  if redis.call('ZSCORE', key('open'), digits(start)) then
    state.bridge = start .. ' ' .. finish
  else
    state.sealed_through = math.max(state.sealed_through, now_s)
  end
  state.regime = number .. ' 1 ' .. ARGV[3]
end
-- First: a server that is full refuses a script whose first write takes memory, and needs a leader to seal.
redis.call('DEL', key('lock'))
redis.call('SET', key('lock'), ARGV[1], 'PX', ARGV[2])
length, exact_limit, shards = ARGV[3], ARGV[4], ARGV[5]
redis.call('HSET', key('state'), 'schema', SCHEMA, 'length', length, 'exact_limit', exact_limit, 'shards', shards,
  'regime', state.regime, 'span', math.max(tonumber(state.span or 1), tonumber(spread)),
  'sealed_through', digits(state.sealed_through), 'since', digits(now_s))
if state.bridge then
  redis.call('HSET', key('state'), 'bridge', state.bridge)
end
last = redis.call('HINCRBY', key('state'), 'epoch', 1)
return answer(last, tonumber(ARGV[2]))
