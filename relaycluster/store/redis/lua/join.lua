-- join: enter the cluster with a new incarnation. A member of the same name and key is a proven dead one and goes at once.
-- KEYS: 1 cluster tag
-- ARGV: 1 max_step_ms  2 lease_ms  3 node id  4 key  5 info
-- Result: {'taken', info of the other} or {'joined', incarnation}
-- First write: DEL.
-- needs: clock
local K = KEYS[1]
local lease = tick(K, tonumber(ARGV[1]))
expire(K, lease)
local name = ARGV[3] .. '\n'
local members = redis.call('HGETALL', K .. MEMBERS)
for n = 1, #members, 2 do
  if string.sub(members[n + 1], 1, #name) == name then
    local both = name .. ARGV[4] .. '\n'
    if string.sub(members[n + 1], 1, #both) ~= both then return {'taken', members[n + 1]} end
    redis.call('ZREM', K .. BEATS, members[n])
    redis.call('HDEL', K .. MEMBERS, members[n])
  end
end
local incarnation = redis.call('HINCRBY', K .. CLOCK, 'next', 1)
redis.call('ZADD', K .. BEATS, lease + ARGV[2], incarnation)
redis.call('HSET', K .. MEMBERS, incarnation, name .. ARGV[4] .. '\n' .. ARGV[5])
changed(K)
return {'joined', incarnation}
