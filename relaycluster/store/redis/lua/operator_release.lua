-- operator_release: held -> waiting, due now; the deaths of its holders are forgotten.
-- KEYS: 1 partition tag
-- ARGV: 1 offset_ms  2 id  3 act  4 trace name ('' for none)
-- Result: 'done' (also when it waits), 'unknown', 'leased' or 'bouncing'
-- First write: ZREM.
-- needs: now item waiting trace operator wake
local K, id = KEYS[1], ARGV[2]
local packed = redis.call('GET', K .. ITEM .. id)
if not packed then return 'unknown' end
if redis.call('HEXISTS', K .. NOTES, '!' .. id) == 1 then return 'bouncing' end
if redis.call('HEXISTS', K .. LEASED, id) == 1 then return 'leased' end
if redis.call('ZREM', K .. HELD, id) == 0 then return 'done' end
redis.call('SETRANGE', K .. ITEM .. id, 2, string.char(0))
local domain = item_domain(packed)
if add_waiting(K, id, item_class(packed), domain, now(ARGV[1]), item_size(packed)) then wake(K, domain) end
tell(K, ARGV[3], ARGV[4], ARGV[1])
return 'done'
