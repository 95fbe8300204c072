-- Counts what is pending.
--
-- Returns {deliveries, messages, callbacks, quarantined}: each a number of windows.

return {
  redis.call('ZCARD', key('deliveries')),
  redis.call('ZCARD', key('messages')),
  redis.call('ZCARD', key('callbacks')),
  redis.call('HLEN', key('quarantine'))
}
