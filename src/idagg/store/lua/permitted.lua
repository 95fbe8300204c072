-- Runs what the scripts need, on a scratch key that is gone afterwards.
--
-- A command that is refused in the middle of a script leaves the half of it done: better to know before.
--
-- Returns what the user is not permitted, in the words of ACL SETUSER: +command; or ~, for its keys.

local scratch = key('scratch')
local denied = {}
for _, command in ipairs({
  {'SET', scratch, 'x', 'PX', 60000}, -- a string: what would write to another type is refused for that, once permitted
  {'TIME'}, {'EXISTS', scratch}, {'TYPE', scratch}, {'GET', scratch}, {'RENAME', scratch, scratch},
  {'PTTL', scratch}, {'PEXPIRE', scratch, 60000}, {'EXPIRE', scratch, 60},
  {'HSET', scratch, 'x', 'x'}, {'HINCRBY', scratch, 'x', 1}, {'HDEL', scratch, 'x'}, {'HGET', scratch, 'x'},
  {'HMGET', scratch, 'x'}, {'HGETALL', scratch}, {'HEXISTS', scratch, 'x'}, {'HLEN', scratch},
  {'SADD', scratch, 'x'}, {'SREM', scratch, 'x'}, {'SCARD', scratch}, {'SISMEMBER', scratch, 'x'}, {'SSCAN', scratch, 0},
  {'ZADD', scratch, 0, 'x'}, {'ZREM', scratch, 'x'}, {'ZSCORE', scratch, 'x'}, {'ZCARD', scratch},
  {'ZRANGE', scratch, 0, 0}, {'PFADD', scratch, 'x'}, {'PFCOUNT', scratch}, {'PFMERGE', scratch}, {'DEL', scratch}, {'UNLINK', scratch},
}) do
  local answer = redis.pcall(unpack(command))
  local why = type(answer) == 'table' and answer.err or ''
  if string.find(why, 'access') then
    return {'~'}
  elseif string.find(why, 'user executing the script') or string.find(why, 'ACL failure') then
    denied[#denied + 1] = '+' .. string.lower(command[1])
  end
end
return denied
