-- pause: the domain is not due before a time, whatever arrives for it meanwhile, as long as something waits for it.
-- KEYS: 1 partition tag
-- ARGV: 1 offset_ms  2 owner text  3 domain  4 delay_ms (0: it is not paused)  5 'why:detail'
-- Result: 'done', or 'lost' when the partition has another owner
-- First write: ZREM.
-- needs: now waiting
local K, domain = KEYS[1], ARGV[3]
if redis.call('GET', K .. OWNER) ~= ARGV[2] then return 'lost' end
local now_ms = now(ARGV[1])
redis.call('ZREM', K .. INDEX, domain)
if tonumber(ARGV[4]) > 0 then
  redis.call('HSET', K .. PAUSED, domain, string.format('%.0f:', now_ms + ARGV[4]) .. ARGV[5])
else
  redis.call('HDEL', K .. PAUSED, domain)
end
reindex(K, domain, now_ms)
return 'done'
