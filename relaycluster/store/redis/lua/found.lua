-- found: what this cluster was founded with; the first node founds it.
-- KEYS: 1 cluster tag
-- ARGV: 1 schema version  2 partitions  3 a new cluster id
-- Result: {version, partitions, cluster id} as stored
-- First write: HSETNX.
local K = KEYS[1]
if redis.call('EXISTS', K .. SCHEMA) == 0 then
  redis.call('HSETNX', K .. SCHEMA, 'version', ARGV[1])
  redis.call('HSETNX', K .. SCHEMA, 'partitions', ARGV[2])
  redis.call('HSETNX', K .. SCHEMA, 'cluster', ARGV[3])
end
return redis.call('HMGET', K .. SCHEMA, 'version', 'partitions', 'cluster')
