-- Opens every script that acts for the leader.
--
-- ARGV[1]  the leader's epoch
-- Errors: FENCED   another epoch has begun; nothing was done
--         DAMAGED  what: an index is no index; nothing was done, so that nothing is done by halves

local epoch = redis.call('HGET', key('state'), 'epoch')
if epoch ~= ARGV[1] then
  return redis.error_reply('FENCED ' .. (epoch or '0'))
end

for _, index in ipairs({'open', 'parts', 'merged', 'deliveries', 'messages', 'callbacks'}) do
  local wrong = wrong_type(key(index), 'zset')
  if wrong then
    return redis.error_reply('DAMAGED ' .. wrong)
  end
end

-- The hash in which a window's record is kept. Below 512 fields and 64 bytes a value, a hash is one piece of memory.
local function kept_in(start)
  return key('kept', digits(start - start % 3600))
end

-- Whether a window's record was made.
local function is_merged(start)
  local kept = kept_in(start)
  return redis.call('ZSCORE', key('merged'), start) or redis.call('EXISTS', key('record', start)) == 1
    or not wrong_type(kept, 'hash') and redis.call('HEXISTS', kept, start) == 1
end

-- A record goes when nothing of its window is pending or quarantined.
local function drop_if_done(start)
  for _, index in ipairs({'deliveries', 'messages', 'callbacks'}) do
    if redis.call('ZSCORE', key(index), start)
      or redis.call('HEXISTS', key('quarantine'), index .. ' ' .. start) == 1 then
      return
    end
  end
  redis.call('UNLINK', key('record', start))
end
