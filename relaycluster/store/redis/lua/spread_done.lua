-- spread_done: every item of the message is enqueued; from here on the items live on their own.
-- KEYS: 1 home partition's tag
-- ARGV: 1 message id
-- Result: 'done'
-- First write: HDEL.
local K = KEYS[1]
redis.call('HDEL', K .. SPREAD, ARGV[1])
if redis.call('HLEN', K .. SPREAD) == 0 then redis.call('ZREM', K .. INDEX, SPREAD_WORK) end
return 'done'
