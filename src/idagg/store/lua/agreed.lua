-- What the processes of the namespace agree on. Changes nothing.
--
-- Returns {length, exact_limit, shards, led, now}: the first three 0 before the first leader; whether somebody leads; the
-- store's clock, Unix time in microseconds.
--
-- Errors: SCHEMA  the store was written by another version

local state = read_state()
if state.schema and state.schema ~= SCHEMA then
  return redis.error_reply('SCHEMA ' .. state.schema)
end
return {
  tonumber(state.length or 0),
  tonumber(state.exact_limit or 0),
  tonumber(state.shards or 0),
  redis.call('EXISTS', key('lock')),
  now_us()
}
