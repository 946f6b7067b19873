-- operator_told: the log has the first acts of operators here. Guarded, so that acts which nobody told are never forgotten: only the owner
-- says so, and only while they still stand there.
-- KEYS: 1 partition tag
-- ARGV: 1 owner text  2 how many  3 the last of them
-- Result: 'done'; 'lost' when the partition has another owner, or they were told before
-- First write: DEL (of nothing: it lets the rest be written when Redis is full).
-- needs: now trace operator
local K = KEYS[1]
if redis.call('GET', K .. OWNER) ~= ARGV[1] then return 'lost' end
if redis.call('LINDEX', K .. ACTS, ARGV[2] - 1) ~= ARGV[3] then return 'lost' end
redis.call('DEL', K .. ':scratch')
redis.call('LTRIM', K .. ACTS, ARGV[2], -1)
operator_idle(K)
return 'done'
