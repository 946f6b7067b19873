-- operator_requeue: waiting -> waiting, due now unless it is due already, with a new value where its attempts are forgotten.
-- KEYS: 1 partition tag
-- ARGV: 1 offset_ms  2 id  3 act  4 trace name ('' for none)  5 the value as it was read  6 the new one ('' to keep it)
-- Result: 'done', 'unknown', 'leased', 'held', 'bouncing', or 'changed' when it has another value by now
-- First write: DEL (of nothing: it lets the rest be written when Redis is full).
-- needs: now item waiting trace operator wake
local K, id = KEYS[1], ARGV[2]
local packed = redis.call('GET', K .. ITEM .. id)
if not packed then return 'unknown' end
if redis.call('HEXISTS', K .. NOTES, '!' .. id) == 1 then return 'bouncing' end
if redis.call('HEXISTS', K .. LEASED, id) == 1 then return 'leased' end
if redis.call('ZSCORE', K .. HELD, id) then return 'held' end
if ARGV[6] ~= '' and packed ~= ARGV[5] then return 'changed' end
local now_ms, domain = now(ARGV[1]), item_domain(packed)
redis.call('DEL', K .. ':scratch')
if ARGV[6] ~= '' then redis.call('SET', K .. ITEM .. id, ARGV[6]) end
redis.call('ZADD', K .. DUE .. item_class(packed) .. ':' .. domain, 'LT', now_ms, id)
reindex(K, domain, now_ms)
wake(K, domain)
tell(K, ARGV[3], ARGV[4], ARGV[1])
return 'done'
