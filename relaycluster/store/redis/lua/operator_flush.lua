-- operator_flush: what waits for a domain is due now, and the domain is not paused. In steps, so that nobody waits for a long queue.
-- KEYS: 1 partition tag
-- ARGV: 1 offset_ms  2 domain  3 act ('' when it is told already)  4 most items in this step
-- Result: how many items were due later
-- First write: HDEL.
-- needs: now waiting trace operator wake
local K, domain, moved = KEYS[1], ARGV[2], 0
local now_ms = now(ARGV[1])
local after, most = string.format('(%.0f', now_ms), tonumber(ARGV[4])
redis.call('HDEL', K .. PAUSED, domain)
for class = 0, 2 do
  local due_key = K .. DUE .. class .. ':' .. domain
  local later = redis.call('ZRANGEBYSCORE', due_key, after, '+inf', 'LIMIT', 0, most - moved)
  for _, id in ipairs(later) do redis.call('ZADD', due_key, 'XX', now_ms, id) end
  moved = moved + #later
end
reindex(K, domain, now_ms)
wake(K, domain)
if ARGV[3] ~= '' then tell(K, ARGV[3], '', ARGV[1]) end
return moved
