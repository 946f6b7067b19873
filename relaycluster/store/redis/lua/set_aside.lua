-- set_aside: leased -> held, for the operator: the holder cannot read the item, or its content is gone.
-- KEYS: 1 partition tag
-- ARGV: 1 offset_ms  2 id  3 token
-- Result: 'done' or 'stale'
-- First write: HDEL.
-- needs: now
local K, id = KEYS[1], ARGV[2]
if redis.call('HGET', K .. LEASED, id) ~= ARGV[3] then return 'stale' end
redis.call('HDEL', K .. LEASED, id)
redis.call('HDEL', K .. NOTES, '!' .. id)
if redis.call('EXISTS', K .. ITEM .. id) == 1 then redis.call('ZADD', K .. HELD, now(ARGV[1]), id) end
return 'done'
