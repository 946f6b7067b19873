-- leave: a member goes at once.
-- KEYS: 1 cluster tag
-- ARGV: 1 max_step_ms  2 incarnation
-- Result: 1, or 0 when it was gone before
-- First write: DEL.
-- needs: clock
local K = KEYS[1]
tick(K, tonumber(ARGV[1]))
local gone = redis.call('ZREM', K .. BEATS, ARGV[2])
redis.call('HDEL', K .. MEMBERS, ARGV[2])
if gone == 1 then changed(K) end
return gone
