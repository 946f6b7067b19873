-- leave_home: parts of a message for several domains need its content no more; the last takes the content along.
-- KEYS: 1 home partition's tag
-- ARGV: 1 message id  2 done slot  3 done field  4 retention_ms  5 chunks  6... parts
-- Result: how many parts are left
-- First write: SREM.
-- needs: settle
local K, id = KEYS[1], ARGV[1]
if redis.call('EXISTS', K .. PARTS .. id) == 0 then return 0 end
for n = 6, #ARGV do redis.call('SREM', K .. PARTS .. id, ARGV[n]) end
local left = redis.call('SCARD', K .. PARTS .. id)
if left == 0 then
  redis.call('ZREM', K .. HOMES, id)
  redis.call('HDEL', K .. SPREAD, id)
  if redis.call('HLEN', K .. SPREAD) == 0 then redis.call('ZREM', K .. INDEX, SPREAD_WORK) end
  forget(K, id, tonumber(ARGV[5]))
  remember(K, ARGV[2], ARGV[3], ARGV[4])
end
return left
