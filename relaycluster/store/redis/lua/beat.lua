-- beat: renew a member's lease and show the cluster to it.
-- KEYS: 1 cluster tag
-- ARGV: 1 max_step_ms  2 lease_ms  3 incarnation  4 node id "\n" key "\n" info
-- Result: {'over'} when the lease had run out; else {'ok', version, next incarnation, offset_ms, TIME in ms, cluster id,
--         version of the suspensions, incarnation, member, ...}
-- First write: DEL.
-- needs: clock
local K = KEYS[1]
local lease, offset, time = tick(K, tonumber(ARGV[1]))
expire(K, lease)
if not redis.call('ZSCORE', K .. BEATS, ARGV[3]) then return {'over'} end
redis.call('ZADD', K .. BEATS, lease + ARGV[2], ARGV[3])
if redis.call('HGET', K .. MEMBERS, ARGV[3]) ~= ARGV[4] then
  redis.call('HSET', K .. MEMBERS, ARGV[3], ARGV[4])
  changed(K)
end
local clock = redis.call('HMGET', K .. CLOCK, 'version', 'next', 'suspensions')
local result = {'ok', clock[1] or '0', clock[2] + 1, string.format('%.0f', offset), string.format('%.0f', time),
  redis.call('HGET', K .. SCHEMA, 'cluster'), clock[3] or '0'}
for _, entry in ipairs(redis.call('HGETALL', K .. MEMBERS)) do result[#result + 1] = entry end
return result
