-- notice_done: the notice is enqueued, nothing is owed for it any more.
-- KEYS: 1 partition tag
-- ARGV: 1 notice id
-- Result: 'done'
-- First write: HDEL.
local K = KEYS[1]
redis.call('HDEL', K .. NOTICES, ARGV[1])
if redis.call('HLEN', K .. NOTICES) == 0 then redis.call('ZREM', K .. INDEX, NOTICE_WORK) end
return 'done'
