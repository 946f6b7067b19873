-- trim_traces: history leaves, the oldest first, as its owner picked it.
-- KEYS: 1 partition tag
-- ARGV: 1... names
-- Result: how many octets left
-- First write: DEL.
local K, freed = KEYS[1], 0
for _, name in ipairs(ARGV) do
  local size = redis.call('STRLEN', K .. TRACE .. name)
  redis.call('DEL', K .. TRACE .. name)
  if redis.call('ZREM', K .. TRACES, name) == 1 then
    freed = freed + math.floor(size / TRACE_BLOCK) * TRACE_BLOCK + TRACE_OVERHEAD
  end
end
redis.call('HINCRBY', K .. COUNTS, 'trace', -freed)
return freed
