-- operator_bounce: waiting or held -> bouncing: the owner of the partition settles it as failed, and its sender gets a notice.
-- KEYS: 1 partition tag
-- ARGV: 1 offset_ms  2 id  3 act  4 trace name ('' for none)  5 reason
-- Result: 'done' (also when it was bounced before), 'unknown' or 'leased'
-- First write: ZREM.
-- needs: now item waiting take trace operator
local K, id = KEYS[1], ARGV[2]
local packed = redis.call('GET', K .. ITEM .. id)
if not packed then return 'unknown' end
if redis.call('HEXISTS', K .. NOTES, '!' .. id) == 1 then return 'done' end
if redis.call('HEXISTS', K .. LEASED, id) == 1 then return 'leased' end
local now_ms = now(ARGV[1])
if redis.call('ZREM', K .. HELD, id) == 0 then take_waiting(K, id, packed, now_ms) end
redis.call('HSET', K .. NOTES, '!' .. id, ARGV[5])
redis.call('ZADD', K .. BOUNCING, now_ms, id)
tell(K, ARGV[3], ARGV[4], ARGV[1])
return 'done'
