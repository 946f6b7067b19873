-- operator_requeue: waiting -> waiting, due now, with a new value where its attempts are forgotten.
-- KEYS: 1 partition tag
-- ARGV: 1 offset_ms  2 id  3 act  4 trace name ('' for none)  5 the value as it was read  6 the new one ('' to keep it)
-- Result: 'done', 'unknown', 'leased', 'held', 'bouncing', or 'changed' when it has another value by now
-- First write: ZREM.
-- needs: now item waiting take trace operator wake
local K, id = KEYS[1], ARGV[2]
local packed = redis.call('GET', K .. ITEM .. id)
if not packed then return 'unknown' end
if redis.call('HEXISTS', K .. NOTES, '!' .. id) == 1 then return 'bouncing' end
if redis.call('HEXISTS', K .. LEASED, id) == 1 then return 'leased' end
if redis.call('ZSCORE', K .. HELD, id) then return 'held' end
if ARGV[6] ~= '' and packed ~= ARGV[5] then return 'changed' end
local now_ms, domain = now(ARGV[1]), item_domain(packed)
take_waiting(K, id, packed, now_ms)
if ARGV[6] ~= '' then redis.call('SET', K .. ITEM .. id, ARGV[6]) end
if add_waiting(K, id, item_class(packed), domain, now_ms, item_size(packed)) then wake(K, domain) end
tell(K, ARGV[3], ARGV[4], ARGV[1])
return 'done'
