-- operator_delete: waiting, held or bouncing -> settled, nothing sent and nobody told but the log.
-- KEYS: 1 partition tag
-- ARGV: 1 offset_ms  2 id  3 act  4 trace name ('' for none)  5 done slot  6 done field  7 retention_ms
-- Result: 'done', 'unknown' or 'leased'
-- First write: ZREM.
-- needs: now item waiting take settle trace operator
local K, id = KEYS[1], ARGV[2]
local packed = redis.call('GET', K .. ITEM .. id)
if not packed then return 'unknown' end
if redis.call('HEXISTS', K .. LEASED, id) == 1 then return 'leased' end
if redis.call('ZREM', K .. HELD, id) + redis.call('ZREM', K .. BOUNCING, id) == 0 then
  take_waiting(K, id, packed, now(ARGV[1]))
end
local chunk = 1
while redis.call('DEL', K .. BODY .. id .. ':' .. chunk) == 1 do chunk = chunk + 1 end
forget(K, id, 0)
remember(K, ARGV[5], ARGV[6], ARGV[7])
tell(K, ARGV[3], ARGV[4], ARGV[1])
return 'done'
