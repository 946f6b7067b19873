-- disown: stop being the owner. What is in flight stays with its holder.
-- KEYS: 1 partition tag
-- ARGV: 1 owner text
-- Result: 1, or 0 when it was not ours
-- First write: DEL.
local K = KEYS[1]
if redis.call('GET', K .. OWNER) ~= ARGV[1] then return 0 end
redis.call('DEL', K .. ':scratch')
redis.call('SET', K .. OWNER, string.match(ARGV[1], ':%d+$'))
redis.call('PUBLISH', MEMBERSHIP_CHANNEL, 'released')
return 1
