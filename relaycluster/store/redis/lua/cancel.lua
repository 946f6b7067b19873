-- cancel: waiting, or leased to the caller -> forgotten. The edge gave up on an enqueue whose answer never came, and told its
-- client so; what may exist of it must not be sent, and a repeat that is still on its way must change nothing.
-- KEYS: 1 partition tag
-- ARGV: 1 offset_ms  2 id  3 done slot  4 done field  5 retention_ms  6 chunks  7 owner text ('' for no direct lease)
-- Result: 'done', or 'held' when somebody has claimed it meanwhile
-- First write: HDEL, or ZREM, or DEL.
-- needs: now item waiting take settle
local K, id = KEYS[1], ARGV[2]
local packed = redis.call('GET', K .. ITEM .. id)
if packed then
  local token = redis.call('HGET', K .. LEASED, id)
  if token then
    if ARGV[7] == '' or string.sub(token, 1, #ARGV[7] + 1) ~= ARGV[7] .. ':' then return 'held' end
    redis.call('HDEL', K .. LEASED, id)
  elseif redis.call('ZREM', K .. HELD, id) + redis.call('ZREM', K .. BOUNCING, id) == 0 then
    take_waiting(K, id, packed, now(ARGV[1]))
  end
end
forget(K, id, tonumber(ARGV[6]))
remember(K, ARGV[3], ARGV[4], ARGV[5])
return 'done'
