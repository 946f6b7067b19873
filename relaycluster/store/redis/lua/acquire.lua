-- acquire: become the owner of the partition, unless a living incarnation is. Each change of owner raises the fence.
-- KEYS: 1 partition tag
-- ARGV: 1 incarnation  2 next incarnation  3 living incarnations ',1,5,'
-- Result: the fence, or 0 when somebody else holds it
-- First write: DEL.
-- needs: dead
local K = KEYS[1]
local holder, fence = string.match(redis.call('GET', K .. OWNER) or ':0', '^(%d*):(%d+)$')
if holder == ARGV[1] then return tonumber(fence) end
if holder ~= '' and not is_dead(holder, ARGV[2], ARGV[3]) then return 0 end
redis.call('DEL', K .. ':scratch')
redis.call('SET', K .. OWNER, ARGV[1] .. ':' .. (fence + 1))
return fence + 1
