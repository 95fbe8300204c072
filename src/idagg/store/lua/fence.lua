-- Opens every script that acts for the leader.
--
-- ARGV[1]  the leader's epoch
-- Errors: FENCED  another epoch has begun; nothing was done

local epoch = redis.call('HGET', key('state'), 'epoch')
if epoch ~= ARGV[1] then
  return redis.error_reply('FENCED ' .. (epoch or '0'))
end

-- An outbox entry goes when nothing of it is owed any more.
local function drop_if_done(start)
  for _, index in ipairs({'outbox', 'unsent', 'callbacks'}) do
    if redis.call('ZSCORE', key(index), start) then
      return
    end
  end
  redis.call('UNLINK', key('o', start))
end
