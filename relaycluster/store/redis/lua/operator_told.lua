-- operator_told: the log has the first acts of operators here.
-- KEYS: 1 partition tag
-- ARGV: 1 how many
-- Result: 'done'
-- First write: DEL (of nothing: it lets the rest be written when Redis is full).
-- needs: now trace operator
local K = KEYS[1]
redis.call('DEL', K .. ':scratch')
redis.call('LTRIM', K .. ACTS, ARGV[1], -1)
operator_idle(K)
return 'done'
