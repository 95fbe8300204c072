-- Counts what is pending.
--
-- Returns {deliveries, messages, callbacks, quarantined}: each a number of windows. Deliveries are those of records, and of
-- parts that are to become records.

return {
  redis.call('ZCARD', key('deliveries')) + redis.call('ZCARD', key('parts')),
  redis.call('ZCARD', key('messages')),
  redis.call('ZCARD', key('callbacks')),
  redis.call('HLEN', key('quarantine'))
}
