-- Opens accept.lua and accept_many.lua: which window takes ids now, and how a batch is put into it.
-- ARGV[1] to ARGV[5] are those of accept.lua.

local state = redis.call('HMGET', key('state'), 'length', 'sealed_through', 'schema', 'bridge', 'exact_limit', 'regime',
  'plan')
if state[3] and state[3] ~= SCHEMA then
  return redis.error_reply('SCHEMA ' .. state[3])
elseif state[1] and state[1] ~= ARGV[1] then
  return redis.error_reply('DIFFERS length ' .. state[1])
elseif state[5] and state[5] ~= ARGV[2] then
  return redis.error_reply('DIFFERS exact_limit ' .. state[5])
end

local length, plan, regime = tonumber(ARGV[1]), state[7], state[6]
local is_usual = regime == ARGV[5] .. ' ' .. ARGV[1] and not plan
if regime and not is_usual then
  length = tonumber(string.match(regime, '%d+$'))
end
local start, finish = open_window(length, tonumber(state[2] or 0), state[4], plan)
local refusal  -- of batches that were not applied yet
if not regime then
  local number, shards = string.match(ARGV[5], '^(%d+) (%d+)$')
  if shards ~= '1' then
    refusal = 'LEADERLESS shard'
  end
  regime = (number == '0' and '1' or number) .. ' 1 ' .. ARGV[1]
elseif not is_usual then
  local number, shards = string.match(regime, '^(%d+) (%d+)')
  local coming = plan and read_plan(plan)
  local has_begun = coming and start >= coming.begins
  if has_begun then
    number, shards = coming.number, coming.shards
  end
  if ARGV[5] ~= number .. ' ' .. shards and (ARGV[5] ~= '0 1' or shards ~= '1') then
    -- Only the home shard knows that a regime is over, or never was.
    local wanted = string.match(ARGV[5], '^%d+')
    if not has_begun and coming and coming.number == wanted or not is_home() and tonumber(wanted) > tonumber(number) then
      refusal = 'AHEAD ' .. number
    elseif has_begun and is_home() and redis.call('HGET', key('state'), 'announced') ~= plan then
      refusal = 'PLANNED ' .. number
    else
      refusal = 'REGIME ' .. number .. ' ' .. shards
    end
  end
end

-- Puts ids and the endpoints from ARGV[first] to ARGV[last] into the window, which may be known to be in the index of
-- those that hold ids. Returns how many of the ids were new. The window is an argument, since as an upvalue it costs a
-- batch of one id 3%.
local function put(start, finish, is_indexed, ids, first, last)
  local window, new = key('w', start), #ids
  if new > 0 then
    if not is_indexed and not redis.call('ZSCORE', key('open'), digits(start)) then
      -- First: nothing may go into a window that nobody would seal.
      redis.call('ZADD', key('open'), digits(start), digits(start))
      redis.call('HSET', window, 'length', digits(finish - start))
    end
    if redis.call('SCARD', window .. ':ids') <= tonumber(ARGV[3]) then
      new = redis.call('SADD', window .. ':ids', unpack(ids))
    else
      redis.call('HSET', window, 'capped', 1)
    end
    redis.call('PFADD', window .. ':hll', unpack(ids))
  end
  local room = last >= first and tonumber(ARGV[4]) - redis.call('SCARD', window .. ':endpoints')
  for i = first, last do
    if room > 0 then
      room = room - redis.call('SADD', window .. ':endpoints', ARGV[i])
    elseif redis.call('SISMEMBER', window .. ':endpoints', ARGV[i]) == 0 then
      redis.call('HINCRBY', window, 'dropped', 1)
    end
  end
  return new
end
