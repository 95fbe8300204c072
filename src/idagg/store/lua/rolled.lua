-- Says which sketches of hours and days there are.
--
-- Returns {now, through, hours, days}: the store's clock, s; before which second hours and days are whole, s; and START,
-- sums, START, sums, …, see TAG:hours.

return {
  math.floor(now_us() / 1000000),
  tonumber(redis.call('HGET', key('state'), 'hours_through') or 0),
  redis.call('HGETALL', key('hours')),
  redis.call('HGETALL', key('days'))
}
