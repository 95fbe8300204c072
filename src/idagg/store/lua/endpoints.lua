-- Gives the endpoints of a shard's part, a piece at a time.
--
-- ARGV[1]  the window's start, s
-- ARGV[2]  0, then the cursor that was returned last
-- ARGV[3]  about so many in a piece
--
-- Returns {cursor, endpoint, …}: a cursor of 0 ends it. An endpoint can come twice.

local piece = redis.call('SSCAN', key('part', ARGV[1]) .. ':endpoints', ARGV[2], 'COUNT', ARGV[3])
return {piece[1], unpack(piece[2])}
